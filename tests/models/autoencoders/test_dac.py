import copy
import json

import pytest
import torch
from reference_rule import assert_matches, assert_same_layout, fill, load_reference

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.autoencoders.autoencoder import AutoencoderBody
from stable_audio_tools.models.autoencoders.dac import DACDecoderConfig, DACEncoderConfig

BODY = {
    "encoder": {"type": "dac", "config": {"d_model": 4, "strides": [2, 3], "latent_dim": 6}},
    "decoder": {"type": "dac", "config": {"latent_dim": 3, "channels": 8, "rates": [3, 2]}},
    "bottleneck": {"type": "vae"},
    "latent_dim": 3,
    "downsampling_ratio": 6,
    "io_channels": 1,
}


def body(**changes):
    """`BODY` with other values at dotted paths."""
    config = copy.deepcopy(BODY)
    for path, value in changes.items():
        *parents, key = path.split("__")
        target = config
        for parent in parents:
            target = target[parent]
        target[key] = value
    return config


@torch.no_grad()
def test_numbers_are_the_reference():
    reference = load_reference("tiny_ae_dac_vae")
    model = AutoencoderBody.model_validate(reference.config["model"]).build(reference.config["sample_rate"]).eval()
    assert_same_layout(model, reference.table)
    fill(model, reference)
    assert_matches(model.encode(reference["in.audio"], skip_bottleneck=True), reference["out.pre_bottleneck_latents"])
    assert_matches(model.decode(reference["in.latents"]), reference["out.decoded"])


@pytest.mark.parametrize("io_channels", [1, 2])
def test_an_autoencoder_trains_and_every_weight_gets_a_gradient(io_channels):
    config = body(encoder__config__in_channels=io_channels, decoder__config__out_channels=io_channels, io_channels=io_channels)
    model = AutoencoderBody.model_validate(config).build(16000)
    audio = torch.randn(2, io_channels, 60)
    latents = model.encode(audio)
    decoded = model.decode(latents)
    assert latents.shape == (2, 3, 10) and decoded.shape == (2, io_channels, 58)  # the odd rate 3 loses one sample, which rate 2 doubles
    decoded.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_state_loads_into_a_copy_built_from_the_same_config():
    first, second = (AutoencoderBody.model_validate(BODY).build(16000).eval() for _ in range(2))
    second.load_state_dict(first.state_dict())
    latents = torch.randn(1, 3, 5)
    assert torch.equal(second.decode(latents), first.decode(latents))
    assert torch.equal(copy.deepcopy(first).decode(latents), first.decode(latents))


def test_half_precision_stays_close():
    decoder = DACDecoderConfig.model_validate(BODY["decoder"]).build().eval()
    latents = torch.randn(1, 3, 5)
    full = decoder(latents)
    half = decoder.bfloat16()(latents.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0, atol=0.05)


def test_without_latent_dim_the_innermost_width_comes_out():
    config = DACEncoderConfig.model_validate({"type": "dac", "config": {"d_model": 4, "strides": [2, 3]}})
    encoder = config.build()
    assert config.out_channels == 16
    assert encoder(torch.randn(1, 1, 12)).shape == (1, 16, 2)
    assert not [key for key in encoder.state_dict() if key.startswith("proj_out")]


def test_the_published_stereo_model_has_its_entries_and_weights():
    encoder = {"in_channels": 2, "latent_dim": 128, "d_model": 128, "strides": [4, 4, 8, 8]}
    decoder = {"out_channels": 2, "latent_dim": 64, "channels": 1536, "rates": [8, 8, 4, 4]}
    config = body(encoder__config=encoder, decoder__config=decoder, latent_dim=64, downsampling_ratio=1024, io_channels=2)
    with torch.device("meta"):
        model = AutoencoderBody.model_validate(config).build(44100)
    state = model.state_dict()
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (240, 133_431_300)


@pytest.mark.parametrize(
    ("changes", "path", "fix"),
    [
        ({"encoder__config__latent_dim": 3}, "encoder.config.latent_dim", "set encoder.config.latent_dim to 6"),
        ({"encoder__config__in_channels": 2}, "encoder.config.in_channels", "set encoder.config.in_channels to 1"),
        ({"encoder__config__strides": [2, 2]}, "encoder.config.strides", "change strides, or set downsampling_ratio to 4"),
        ({"decoder__config__rates": [2, 2]}, "decoder.config.rates", "change rates, or set downsampling_ratio to 4"),
        ({"decoder__config__latent_dim": 4}, "decoder.config.latent_dim", "set decoder.config.latent_dim to 3"),
        ({"decoder__config__channels": 3}, "decoder.config.channels", "set channels to 4 or more"),
        ({"decoder__config__d_out": 1}, "decoder.config.d_out", "out_channels"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place_and_fix(changes, path, fix):
    config = body(**changes)
    with pytest.raises(ConfigError) as caught:
        validate(AutoencoderBody, config, "model.json", json.dumps(config))
    told = [(problem["path"], problem["fix"] + problem["message"]) for problem in caught.value.to_dict()["problems"]]
    assert any(path == place and fix in text for place, text in told), told
