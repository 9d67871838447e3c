"""The transformer codec: recorded numbers, a window that is honoured, every option, and what does not fit."""

import copy

import pytest
import torch
from pydantic import ValidationError
from reference_rule import assert_matches, assert_same_layout, fill, load_reference
from torch import nn

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.autoencoders.autoencoder import AutoencoderBody
from stable_audio_tools.models.autoencoders.taae import (
    FrameTransformer,
    TAAEDecoderConfig,
    TAAEEncoderConfig,
    TAAEEncoderParams,
)
from stable_audio_tools.nn.conv import SnakeBeta

SIZES = {"channels": 16, "c_mults": [1, 2], "strides": [2, 4], "transformer_depths": [1, 2], "latent_dim": 6}
OPTIONS = {
    "use_snake": True,
    "conformer": True,
    "layer_scale": False,
    "use_dilated_conv": True,
    "checkpointing": True,
    "sliding_window": None,
    "transformer_depths": [0, 1],
    "c_mults": [2, 2],
    "channels": 128,
}


def encoder(**options):
    return TAAEEncoderConfig.model_validate({"type": "taae", "config": {**SIZES, **options}}).build()


def decoder(**options):
    return TAAEDecoderConfig.model_validate({"type": "taae", "config": {**SIZES, **options}}).build()


def randomise(module):
    """Branches that start at or near zero would hide what is wrong in them."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return module


def reference_model(reference):
    model = AutoencoderBody.model_validate(reference.config["model"]).build(reference.config["sample_rate"]).eval()
    assert_same_layout(model, reference.table)
    fill(model, reference)
    return model


@torch.no_grad()
def test_numbers_are_the_reference():
    reference = load_reference("tiny_ae_taae_vae")
    model = reference_model(reference)
    assert_matches(model.encode(reference["in.audio"], skip_bottleneck=True), reference["out.pre_bottleneck_latents"])
    assert_matches(model.decode(reference["in.latents"]), reference["out.decoded"])
    assert_matches(model.decode(reference["in.latents"], skip_bottleneck=True), reference["out.decoded_skip_bottleneck"])
    assert_matches(model.encode(reference["in.audio"], return_info=True)[1]["kl"], reference["seeded.info.kl"])


def test_a_decoder_with_snake_runs_where_the_width_changes():
    """The published layout has too few gains for an activation in front of the convolution, and crashed there."""
    reference = load_reference("tiny_ae_taae_snake_broken")
    model = reference_model(reference)
    with torch.no_grad():
        assert_matches(model.encode(reference["in.audio"], skip_bottleneck=True), reference["out.pre_bottleneck_latents"])
    audio = model.decode(reference["in.latents"])
    assert audio.shape == reference["in.audio"].shape and audio.isfinite().all()
    audio.square().mean().backward()
    gains = [m.alpha for m in model.decoder.modules() if isinstance(m, SnakeBeta)]
    assert len(gains) == 3 and all(alpha.grad.abs().max() > 0 for alpha in gains)


@torch.no_grad()
def test_snake_stands_in_front_of_a_convolution_that_keeps_the_width():
    """So were decoders of one width trained."""
    module = randomise(decoder(use_snake=True, c_mults=[2, 2]))
    stage = module.layers[1]
    x = torch.randn(1, 32, 10)
    transformer, activation, convolution = stage.layers
    assert torch.equal(stage(x), convolution(activation(transformer(x))))


@torch.no_grad()
@pytest.mark.parametrize("backend", ["auto", "sdpa", "flex"])
@pytest.mark.parametrize("window", [[3, 4], [0, 2], [-1, 0]])
@pytest.mark.slow
def test_a_frame_sees_exactly_its_window_on_every_backend(backend, window):
    """Without its optional kernel the peer drops the window."""
    params = TAAEEncoderParams.model_validate({**SIZES, "sliding_window": window, "backend": backend})
    module = randomise(FrameTransformer(32, 1, params))
    frames = torch.randn(1, 32, 300)
    moved = frames.clone()
    moved[..., 200] = torch.randn(32)
    changed = (module(frames) - module(moved)).abs().amax((0, 1)) > 1e-6
    left, right = window
    assert changed.nonzero().flatten().tolist() == list(range(200 - right, 300 if left < 0 else 201 + left))


@torch.no_grad()
def test_a_window_wider_than_the_sequence_is_no_window():
    wide, none = encoder(sliding_window=[200, 200]), encoder(sliding_window=None)
    none.load_state_dict(randomise(wide).state_dict())
    audio = torch.randn(1, 2, 400)
    torch.testing.assert_close(wide(audio), none(audio))
    narrow = encoder(sliding_window=[2, 2])
    narrow.load_state_dict(wide.state_dict())
    assert (narrow(audio) - wide(audio)).abs().max() > 1e-3


@torch.no_grad()
def test_frames_far_apart_do_not_meet_however_long_the_sequence():
    """Two stages of reach 8 and 16 frames see some 100 samples; long audio equals its own middle."""
    module = randomise(encoder(sliding_window=[7, 8], transformer_depths=[1, 1]))
    audio = torch.randn(1, 2, 32000)
    middle = module(audio[..., 8000:24000])
    # RoPE is relative, so positions do not matter either.
    torch.testing.assert_close(module(audio)[..., 1020:2980], middle[..., 20:1980], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.slow
def test_every_option_builds_runs_trains_and_reloads(option):
    options = {option: OPTIONS[option]}
    for make, shape, want in ((encoder, (2, 2, 64), (2, 6, 8)), (decoder, (2, 6, 8), (2, 2, 64))):
        module, twin = make(**options), make(**options)
        x = torch.randn(shape)
        y = module(x)
        assert y.shape == want
        y.square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
        twin.load_state_dict(module.state_dict())
        assert torch.equal(twin(x), y) and torch.equal(copy.deepcopy(module).eval()(x), y)


def test_recomputing_changes_no_gradient():
    plain, saving = randomise(decoder(use_snake=True)), decoder(use_snake=True, checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    latents = torch.randn(1, 6, 12)
    for module in (plain, saving):
        module(latents).square().mean().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_new_branches_are_nearly_silent():
    """LayerScale starts them at 1e-5; without it they start at zero."""
    x = torch.randn(1, 16, 20)
    for layer_scale, limit in ((True, 1e-3), (False, 0.0)):
        module = FrameTransformer(16, 2, TAAEEncoderParams.model_validate({**SIZES, "layer_scale": layer_scale}))
        assert (module(x) - x).abs().max() <= limit


@pytest.mark.parametrize(("strides", "samples", "frames", "decoded"), [([3, 5], 60, 4, 56), ([1, 4], 64, 16, 64), ([1, 1], 60, 61, 60)])
def test_lengths_at_odd_strides_and_at_stages_that_do_not_resample(strides, samples, frames, decoded):
    """At stride 1 the first stage, which keeps the width, has no convolution; the second has one of two taps."""
    latents = encoder(strides=strides)(torch.randn(1, 2, samples))
    assert latents.shape == (1, 6, frames)
    assert decoder(strides=strides)(latents).shape == (1, 2, decoded)


def test_half_precision():
    module = encoder(use_snake=True).bfloat16()
    y = module(torch.randn(1, 2, 64, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16 and y.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder()(torch.randn(1, 2, 64)).isfinite().all()


def test_the_default_model_on_meta():
    with torch.device("meta"):
        config = TAAEEncoderConfig(type="taae")
        module = config.build()
    assert (config.in_channels, config.out_channels, config.downsampling_ratio) == (2, 32, 512)
    state = module.state_dict()
    assert state["layers.4.layers.2.3.self_attn.q_norm.weight"].shape == (128,)
    assert state["layers.4.layers.2.3.rope.inv_freq"].shape == (32,)
    assert all(value.is_meta for value in state.values())


def test_requires_grad_false_freezes():
    config = TAAEEncoderConfig.model_validate({"type": "taae", "requires_grad": False, "config": SIZES})
    assert not any(p.requires_grad for p in config.build().parameters())


def test_absent_depths_follow_the_stages_and_stay_absent():
    config = TAAEEncoderConfig.model_validate({"type": "taae", "config": {"c_mults": [1, 2], "strides": [2, 4]}})
    assert config.config.transformer_depths == (3, 3)
    assert "transformer_depths" not in config.model_dump(exclude_unset=True)["config"]


@pytest.mark.parametrize("channels", [1, 5, 6, 9, 33])
def test_a_stage_of_any_width_up_to_a_head_is_one_head(channels):
    made, back = (randomise(build(channels=channels)) for build in (encoder, decoder))
    latents = made(torch.randn(1, 2, 64))
    assert latents.shape == (1, 6, 8) and back(latents).shape == (1, 2, 64)
    assert made.layers[2].layers[2][1].rope.inv_freq.shape == ((channels + 1) // 2,)


@pytest.mark.parametrize(
    ("options", "path", "message", "fix"),
    [
        ({"strides": [2, 4, 8]}, ("strides",), "strides has 3 entries for the 2 stages of c_mults", "give 2 entries"),
        ({"transformer_depths": [1]}, ("transformer_depths",), "transformer_depths has 1 entries for the 2 stages", "give 2 entries"),
        (
            {"channels": 64, "c_mults": [1, 3]},
            ("c_mults", 1),
            "stage 1 is channels 64 times 3 = 192 wide, which makes no attention heads",
            "make it a multiple of 128, or less than that",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, path, message, fix):
    for config in (TAAEEncoderConfig, TAAEDecoderConfig):
        with pytest.raises(ConfigError) as error:
            validate(config, {"type": "taae", "config": {**SIZES, **options}}, "config")
        (problem,) = error.value.problems
        assert problem.path == ("config", *path) and message in problem.message and fix in problem.fix


def test_a_stage_without_a_transformer_may_have_any_width():
    assert encoder(channels=9, transformer_depths=[0, 0])(torch.randn(1, 2, 64)).shape == (1, 6, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sliding_window": [-2, 4]}, "greater than or equal to -1"), ({"backend": "natten"}, "Input should be 'auto'")],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        encoder(**options)
