import subprocess
import sys
from copy import deepcopy

import pytest
import torch

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.autoencoders.autoencoder import AutoencoderBody

SIZES = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "use_snake": True}
BODY = {
    "encoder": {"type": "oobleck", "config": {**SIZES, "in_channels": 2, "latent_dim": 6}},
    "decoder": {"type": "oobleck", "config": {**SIZES, "out_channels": 2, "latent_dim": 3, "final_tanh": False}},
    "bottleneck": {"type": "vae"},
    "latent_dim": 3,
    "downsampling_ratio": 8,
    "io_channels": 2,
}


def body(**changes):
    """BODY with some values replaced, "encoder.config.strides" style; None removes the key."""
    result = deepcopy(BODY)
    for path, value in changes.items():
        *parents, key = path.split("__")
        place = result
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[key]
        else:
            place[key] = value
    return result


def build(**changes):
    return AutoencoderBody.model_validate(body(**changes)).build(16000)


PATCHED = {"type": "patched", "config": {"channels": 2, "patch_size": 4}}
MISFITS = [
    (
        {"encoder__config__in_channels": 1},
        "encoder.config.in_channels is 1, but io_channels is 2",
        "set encoder.config.in_channels to 2, or io_channels to 1",
    ),
    (
        {"in_channels": 1},
        "encoder.config.in_channels is 2, but in_channels is 1",
        "set encoder.config.in_channels to 1, or in_channels to 2",
    ),
    (
        {"out_channels": 1},
        "decoder.config.out_channels is 2, but out_channels is 1",
        "set decoder.config.out_channels to 1, or out_channels to 2",
    ),
    (
        {"encoder__config__latent_dim": 3},
        "encoder.config.latent_dim is 3, but latent_dim 3 and bottleneck 'vae' need 6",
        "set encoder.config.latent_dim to 6, or change latent_dim",
    ),
    (
        {"bottleneck": None},
        "encoder.config.latent_dim is 6, but latent_dim 3 and no bottleneck need 3",
        "set encoder.config.latent_dim to 3, or change latent_dim",
    ),
    (
        {"decoder__config__latent_dim": 6},
        "decoder.config.latent_dim is 6, but latent_dim 3 and bottleneck 'vae' need 3",
        "set decoder.config.latent_dim to 3, or change latent_dim",
    ),
    (
        {"encoder__config__strides": [2, 2]},
        "the product of encoder.config.strides is 4, but downsampling_ratio is 8",
        "change strides, or set downsampling_ratio to 4",
    ),
    (
        {"decoder__config__strides": [4, 4]},
        "the product of decoder.config.strides is 16, but downsampling_ratio is 8",
        "change strides, or set downsampling_ratio to 16",
    ),
    (
        {"pretransform": PATCHED},
        "encoder.config.in_channels is 2, but the pretransform has 8 encoded channels",
        "set encoder.config.in_channels to 8",
    ),
    (
        {"pretransform": PATCHED},
        "the product of decoder.config.strides is 8 times the pretransform's 4 = 32, but downsampling_ratio is 8",
        "change strides, or set downsampling_ratio to 32",
    ),
    (
        {"pretransform": {"type": "patched", "config": {"channels": 1, "patch_size": 4}}},
        "the pretransform is for 1 audio channels, but io_channels is 2",
        "set io_channels to 1, or the pretransform's channels to 2",
    ),
]


@pytest.mark.parametrize(("changes", "message", "fix"), MISFITS, ids=[message.split(",")[0] for _, message, _ in MISFITS])
def test_sizes_that_contradict_each_other_are_named_with_the_fix(changes, message, fix):
    with pytest.raises(ConfigError) as caught:
        validate(AutoencoderBody, body(**changes), "model config")
    problem = next(p for p in caught.value.problems if p.message == message)
    assert problem.fix == fix
    assert problem.path[0] in ("encoder", "decoder", "pretransform")


def test_all_contradictions_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        validate(AutoencoderBody, body(latent_dim=4, downsampling_ratio=16, io_channels=1), "model config")
    assert len(caught.value.problems) == 6


def test_null_channels_are_io_channels():
    made = AutoencoderBody.model_validate({**BODY, "in_channels": None, "out_channels": None})
    assert (made.in_channels, made.out_channels) == (2, 2)
    assert made.model_dump(exclude_unset=True) == AutoencoderBody.model_validate(BODY).model_dump(exclude_unset=True)


def test_a_missing_io_channels_is_one_problem():
    with pytest.raises(ConfigError) as caught:
        validate(AutoencoderBody, body(io_channels=None), "model config")
    assert [problem.path for problem in caught.value.problems] == [("io_channels",)]


def test_a_dump_repeats_what_was_written():
    config = AutoencoderBody.model_validate(BODY)
    assert (config.in_channels, config.out_channels) == (2, 2)
    assert AutoencoderBody.model_validate(config.model_dump(mode="json", exclude_unset=True)) == config
    assert "in_channels" not in config.model_dump(exclude_unset=True)


def test_sizes_and_information_of_encoding():
    model = build()
    latents, info = model.encode(torch.randn(2, 2, 64), return_info=True)
    assert latents.shape == (2, 3, 8) and info["pre_bottleneck_latents"].shape == (2, 6, 8)
    assert info["kl"].ndim == 0
    assert model.decode(latents).shape == (2, 2, 64)
    assert torch.equal(model.encode(torch.ones(1, 2, 64), sample=False), model.encode(torch.ones(1, 2, 64), skip_bottleneck=True)[:, :3])


def test_the_mean_of_a_vae_draws_no_random_number():
    model, audio = build(), torch.randn(2, 2, 64)
    state = torch.get_rng_state()
    model.encode_audio(audio, sample=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(model.encode(audio), model.encode(audio))


@torch.no_grad()
def test_one_item_at_a_time_is_the_same():
    model, audio = (
        build(pretransform=PATCHED, downsampling_ratio=32, encoder__config__in_channels=8, decoder__config__out_channels=8),
        torch.randn(3, 2, 64),
    )
    latents = model.encode(audio, sample=False)
    torch.testing.assert_close(model.encode(audio, sample=False, iterate_batch=True), latents)
    torch.testing.assert_close(model.decode(latents, iterate_batch=True), model.decode(latents))
    torch.testing.assert_close(model.encode(model.pretransform.encode(audio), sample=False, skip_pretransform=True), latents)


def test_soft_clip_is_a_tanh_on_the_audio():
    plain, clipped = build(), build(decoder__soft_clip=True)
    clipped.load_state_dict(plain.state_dict())
    latents = 10 * torch.randn(1, 3, 8)
    torch.testing.assert_close(clipped.decode(latents), torch.tanh(plain.decode(latents)))


def test_mono_in_stereo_out():
    model = build(in_channels=1, encoder__config__in_channels=1)
    assert model.decode(model.encode(torch.randn(1, 1, 64))).shape == (1, 2, 64)


@pytest.mark.parametrize("pretransform", [None, "patched", "autoencoder"])
def test_gradient_reaches_all_of_encoder_and_decoder_and_not_the_pretransform(pretransform):
    changes = {}
    if pretransform == "patched":
        changes = {"pretransform": PATCHED, "downsampling_ratio": 32, "encoder__config__in_channels": 8, "decoder__config__out_channels": 8}
    elif pretransform == "autoencoder":
        changes = {"pretransform": {"type": "autoencoder", "config": BODY}, "downsampling_ratio": 64}
        changes |= {"encoder__config__in_channels": 3, "decoder__config__out_channels": 3}
    model = build(**changes)
    latents, info = model.encode(torch.randn(2, 2, 128), return_info=True)
    (model.decode(latents).square().mean() + info["kl"]).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("pretransform."), name


def test_clips_of_any_rate_length_and_layout_become_one_batch():
    model = build()
    clips = [torch.ones(40), torch.ones(1, 10), torch.ones(2, 43), torch.ones(2, 20)]
    batch = model.preprocess_audio_list_for_encoder(clips, [16000, 16000, 16000, 8000])
    assert batch.shape == (4, 2, 48)
    assert batch[1, :, :10].eq(1).all() and batch[1, :, 10:].eq(0).all()
    assert model.preprocess_audio_for_encoder(torch.ones(3, 2, 48), 16000).shape == (3, 2, 48)
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(4000) / 8000)
    want = torch.sin(2 * torch.pi * 440 * torch.arange(8000) / 16000)
    torch.testing.assert_close(model.preprocess_audio_for_encoder(tone, 8000)[0, 1, 500:-500], want[500:-500], atol=1e-3, rtol=0)


def test_stereo_clips_are_mixed_for_a_mono_encoder():
    model = build(in_channels=1, encoder__config__in_channels=1)
    batch = model.preprocess_audio_for_encoder(torch.stack([torch.ones(16), torch.zeros(16)]), 16000)
    assert batch.shape == (1, 1, 16) and batch.eq(0.5).all()


@pytest.mark.parametrize(
    ("clips", "rates", "message"),
    [
        ([], 16000, "at least one clip, got 0 rates for 0 clips"),
        ([torch.ones(8)], [16000, 8000], "got 2 rates for 1 clips"),
        ([torch.ones(3, 8)], 16000, r"\(3, 8\), expected \(samples,\), \(1, samples\) or \(2, samples\)"),
        ([torch.ones(2, 0)], 16000, r"\(2, 0\), expected"),
        ([torch.ones(1, 2, 8)], 16000, r"\(1, 2, 8\), expected"),
    ],
)
def test_clips_that_cannot_be_converted_are_refused(clips, rates, message):
    with pytest.raises(ValueError, match=message):
        build().preprocess_audio_list_for_encoder(clips, rates)


@pytest.mark.slow
def test_the_packages_import_in_any_order():
    """In one process that forgets the package in between, since importing torch again takes seconds."""
    script = """
import sys
for first in ("pretransforms", "autoencoders.autoencoder"):
    for name in [name for name in sys.modules if name.startswith("stable_audio_tools")]:
        del sys.modules[name]
    __import__("stable_audio_tools.models." + first)
    from stable_audio_tools.models.pretransforms import PRETRANSFORMS
    assert "autoencoder" in PRETRANSFORMS.names
"""
    subprocess.run([sys.executable, "-c", script], check=True)
