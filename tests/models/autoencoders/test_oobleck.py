import copy

import pytest
import torch
from pydantic import ValidationError
from reference_rule import assert_matches, assert_same_layout, fill, load_reference

from stable_audio_tools.models.autoencoders.autoencoder import AutoencoderBody
from stable_audio_tools.models.autoencoders.oobleck import OobleckDecoderConfig, OobleckEncoderConfig


@pytest.fixture(params=["tiny_ae_oobleck_vae", "tiny_ae_oobleck_tanh"])
def reference(request):
    return load_reference(request.param)


@pytest.fixture
def model(reference):
    model = AutoencoderBody.model_validate(reference.config["model"]).build(reference.config["sample_rate"]).eval()
    assert_same_layout(model, reference.table)
    fill(model, reference)
    return model


@torch.no_grad()
def test_numbers_are_the_reference(model, reference):
    assert_matches(model.encode(reference["in.audio"], skip_bottleneck=True), reference["out.pre_bottleneck_latents"])
    assert_matches(model.decode(reference["in.latents"]), reference["out.decoded"])
    assert_matches(model.decode(reference["in.latents"], skip_bottleneck=True), reference["out.decoded_skip_bottleneck"])
    if "in.latents_long" in reference.tensors:
        chunked = model.decode_audio(reference["in.latents_long"], chunked=True, overlap=8, chunk_size=24)
        assert_matches(chunked, reference["out.decoded_chunked_c24_o8"])
        assert_matches(model.encode(reference["in.audio"], return_info=True)[1]["kl"], reference["seeded.info.kl"])


@torch.no_grad()
def test_a_copy_and_folded_weights_compute_the_same(model, reference):
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if hasattr(module, "remove_weight_norm"):
            module.remove_weight_norm()
    assert not [key for key in twin.state_dict() if key.endswith(("weight_g", "weight_v"))]
    for other in (copy.deepcopy(model), twin):
        assert torch.equal(other.decode(reference["in.latents"]), model.decode(reference["in.latents"]))


def test_the_published_44_khz_model_has_its_365_entries_and_156_112_514_weights():
    sizes = {"channels": 128, "c_mults": [1, 2, 4, 8, 16], "strides": [2, 4, 4, 8, 8], "use_snake": True}
    body = AutoencoderBody.model_validate(
        {
            "encoder": {"type": "oobleck", "config": {**sizes, "in_channels": 2, "latent_dim": 128}},
            "decoder": {"type": "oobleck", "config": {**sizes, "out_channels": 2, "latent_dim": 64, "final_tanh": False}},
            "bottleneck": {"type": "vae"},
            "latent_dim": 64,
            "downsampling_ratio": 2048,
            "io_channels": 2,
        }
    )
    with torch.device("meta"):
        model = body.build(44100)
    assert len(model.state_dict()) == 365
    assert sum(p.numel() for p in model.parameters()) == 156_112_514


def test_defaults_are_those_of_the_published_class():
    encoder, decoder = OobleckEncoderConfig(type="oobleck"), OobleckDecoderConfig(type="oobleck")
    assert (encoder.in_channels, encoder.out_channels, encoder.downsampling_ratio) == (2, 32, 512)
    assert (decoder.in_channels, decoder.out_channels, decoder.downsampling_ratio) == (32, 2, 512)
    assert not encoder.config.use_snake and decoder.config.final_tanh and not decoder.soft_clip


@pytest.mark.parametrize("option", ["use_nearest_upsample", "antialias_activation", "checkpointing", "use_snake"])
def test_every_option_builds_runs_and_trains(option):
    sizes = {"channels": 4, "c_mults": [1, 2], "strides": [2, 3], "latent_dim": 3, option: True}
    decoder = OobleckDecoderConfig.model_validate({"type": "oobleck", "config": sizes}).build()
    audio = decoder(torch.randn(2, 3, 10))
    assert audio.shape == (2, 2, 60 if option == "use_nearest_upsample" else 58)
    assert audio.abs().max() <= 1
    audio.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


def test_antialiasing_reaches_the_strides_and_the_end_of_the_decoder_and_the_end_of_the_encoder():
    """As in the published code, which leaves residual units as they are: other keys would not take its checkpoints."""
    sizes = {"channels": 4, "c_mults": [1, 2], "strides": [2, 2], "latent_dim": 3, "use_snake": True, "antialias_activation": True}
    encoder = OobleckEncoderConfig.model_validate({"type": "oobleck", "config": sizes}).build()
    decoder = OobleckDecoderConfig.model_validate({"type": "oobleck", "config": sizes}).build()
    filters = [
        {key.removesuffix(".upsample.filter") for key in m.state_dict() if key.endswith("upsample.filter")} for m in (encoder, decoder)
    ]
    assert filters == [{"layers.3"}, {"layers.1.layers.0", "layers.2.layers.0", "layers.3"}]


def test_requires_grad_false_freezes():
    config = {"type": "oobleck", "requires_grad": False, "config": {"channels": 4}}
    for family in (OobleckEncoderConfig, OobleckDecoderConfig):
        assert not any(p.requires_grad for p in family.model_validate(config).build().parameters())


def test_one_width_per_stride():
    with pytest.raises(ValidationError, match="c_mults has 2 entries and strides has 3\n  = give one width per stride"):
        OobleckEncoderConfig.model_validate({"type": "oobleck", "config": {"c_mults": [1, 2], "strides": [2, 2, 2]}})
