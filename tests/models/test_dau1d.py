"""DAU1d: recorded numbers, every option at work, the published sizes, its refusals; alone, and beside latents."""

import copy
import math

import pytest
import torch
from reference_rule import assert_matches, assert_same_layout, fill, load_reference

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.diffusion.grids import schedule
from stable_audio_tools.diffusion.objectives import VPrediction
from stable_audio_tools.diffusion.samplers import make_field
from stable_audio_tools.diffusion.samplers.ddim import ddim
from stable_audio_tools.models.denoisers import DecoderDenoiserConfig, UnconditionalConfig
from stable_audio_tools.models.denoisers.dau1d import CUBIC, CubicDownsample, CubicUpsample, DAU1d, DAU1dParams
from stable_audio_tools.models.factory import create_model_from_config

SMALL = {"depth": 4, "n_attn_layers": 2, "channels": [32, 32, 64, 64], "strides": [2, 2, 2]}


def network(**options):
    return DAU1d(DAU1dParams.model_validate({**SMALL, **options}))


def noisy(frames=64, channels=2):
    return torch.randn(2, channels, frames), torch.tensor([0.2, 0.9])


def test_recorded_numbers():
    reference = load_reference("tiny_uncond_dau1d")
    model = create_model_from_config(reference.config).eval()
    assert_same_layout(model, reference.table)
    fill(model, reference)
    with torch.no_grad():
        assert_matches(model(reference["in.x"], reference["in.t"]), reference["out.model"])
        ts = schedule(model.objective, 4, length=512)
        assert_matches(
            ddim(make_field(model, VPrediction()), reference["in.x"], ts, objective=VPrediction()), reference["out.v_ddim_eta0_steps4"]
        )


def test_the_published_models_have_their_size():
    """Recorded of dance_diffusion_base and its variants: the number of keys, and of parameters."""
    config = {"model_type": "diffusion_uncond", "sample_size": 65536, "sample_rate": 48000}
    with torch.device("meta"):
        model = create_model_from_config({**config, "model": {"type": "DAU1d", "config": {"n_attn_layers": 5}}})
    assert len(model.state_dict()) == 932
    assert sum(parameter.numel() for parameter in model.parameters()) == 221_389_322
    assert model.min_input_length == 8192


@pytest.mark.parametrize(
    "options",
    [
        {"use_snake": True},
        {"learned_resample": True, "strides": [2, 4, 1]},
        {"learned_resample": True, "strides": [3, 1, 5]},
        {"strides": [2, 1, 2]},
        {"kernel_size": 7, "conv_bias": False},
        {"n_attn_layers": 0},
        {"n_attn_layers": 20},
        {"channels": [16, 32, 96, 64, 1000]},
        {"depth": 2},
        {"depth": 1, "strides": []},
        {"io_channels": 1},
        {"cond_dim": 3},
        {"cond_dim": 3, "cond_noise_aug": True},
    ],
    ids=str,
)
@pytest.mark.slow
def test_every_option_builds_runs_and_learns(options):
    model = network(**options)
    frames = math.prod(model.params.factors) * 6
    x, t = noisy(frames, model.params.io_channels)
    cond = torch.randn(2, model.params.cond_dim, frames // 3) if model.params.cond_dim else None
    out = model(x, t, cond)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.abs().sum()] == []


@pytest.mark.parametrize("options", [{}, {"use_snake": True, "learned_resample": True, "cond_dim": 3, "cond_noise_aug": True}])
def test_copies_casts_and_meta(options):
    model = network(**options).eval()
    x, t = noisy()
    cond = torch.randn(2, 3, 64) if options else None
    want = model(x, t, cond)
    torch.testing.assert_close(copy.deepcopy(model)(x, t, cond), want)
    with torch.device("meta"):
        empty = network(**options)
    assert {key: value.shape for key, value in empty.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half(x.bfloat16(), t, cond if cond is None else cond.bfloat16()).dtype == torch.bfloat16
    restored = network(**options).eval()
    restored.load_state_dict(model.state_dict())
    torch.testing.assert_close(restored(x, t, cond), want)


def test_weights_start_at_half_the_default_and_at_a_quarter_beside_latents():
    """The bound of a convolution's default initialisation is 1 / sqrt(fan_in)."""
    alone = validate(UnconditionalConfig, {"type": "DAU1d", "config": SMALL}, "test").build()
    beside = validate(DecoderDenoiserConfig, {"type": "DAU1d", "config": {**SMALL, "cond_dim": 4}}, "test").build().model
    for model, share in ((alone, 0.5), (beside, 0.25)):
        weight = model.net[1].main[0].weight
        assert 0.98 * share < weight.abs().max() * math.sqrt(weight[0].numel()) <= share
    torch.manual_seed(1)
    assert 0.3 < beside.timestep_embed.weight.std() / alone.timestep_embed.weight.std() < 0.9


def test_attention_sees_every_frame_and_convolutions_alone_do_not():
    """Differences of the output far from a changed frame, with single-frame convolutions and no shared normalisation statistics."""
    x, t = noisy(512)
    other = x.clone()
    other[:, :, 0] += 10

    def reach(n_attn_layers):
        torch.manual_seed(0)
        model = network(n_attn_layers=n_attn_layers).double()
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, torch.nn.GroupNorm):  # its statistics reach everywhere
                    setattr(parent, name, torch.nn.Identity())
        return (model(x.double(), t) - model(other.double(), t)).abs().amax(dim=(0, 1))[-16:].max()

    assert reach(2) > 0
    assert reach(0) == 0


def test_resampling_keeps_what_is_slow():
    """A constant passes both filters unchanged, and a slow sine comes back from half the rate."""
    sine = torch.sin(torch.arange(256) / 256 * 2 * math.pi * 4).expand(2, 3, -1)
    down, up = CubicDownsample(), CubicUpsample()
    torch.testing.assert_close(sum(CUBIC), 1.0)
    torch.testing.assert_close(up(down(torch.ones(1, 2, 32))), torch.ones(1, 2, 32))
    torch.testing.assert_close(up(down(sine))[..., 8:-8], sine[..., 8:-8], atol=0.02, rtol=0)


def test_latents_are_interpolated_to_the_frames_of_the_input():
    model = network(cond_dim=3).eval()
    x, t = noisy()
    short = torch.randn(2, 3, 16)
    full = torch.nn.functional.interpolate(short, 64, mode="linear")
    torch.testing.assert_close(model(x, t, short), model(x, t, full))


def test_noise_on_the_latents_is_training_s_alone_and_the_network_is_told_its_level():
    model = network(cond_dim=3, cond_noise_aug=True)
    x, t = noisy()
    cond = torch.randn(2, 3, 64)
    assert not torch.equal(model(x, t, cond), model(x, t, cond))
    model.eval()
    assert torch.equal(model(x, t, cond), model(x, t, cond))
    assert torch.equal(model(x, t, cond), model(x, t, cond, cond_aug_scale=0.0))
    assert not torch.equal(model(x, t, cond), model(x, t, cond, cond_aug_scale=0.5))
    with torch.no_grad():  # deaf to the latents, not to what it is told of them
        for layer in (model.net[0].main[0], model.net[0].skip):
            layer.weight[:, -3:] = 0
    assert torch.equal(model(x, t, cond), model(x, t, 2 * cond))
    assert not torch.equal(model(x, t, cond), model(x, t, cond, cond_aug_scale=0.5))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((torch.zeros(2, 3, 64), torch.zeros(2), torch.zeros(2, 3, 8)), r"shape \(2, 3, 64\), expected \(batch, 2, frames\)"),
        ((torch.zeros(2, 2, 64), torch.zeros(2)), "cond has 0 channels, the model has cond_dim 3"),
        ((torch.zeros(2, 2, 64), torch.zeros(2), torch.zeros(2, 4, 8)), "cond has 4 channels, the model has cond_dim 3"),
        ((torch.zeros(2, 2, 60), torch.zeros(2), torch.zeros(2, 3, 8)), "60 frames are no multiple of 8 .* from 24 up; pad to 64"),
        ((torch.zeros(2, 2, 16), torch.zeros(2), torch.zeros(2, 3, 8)), "pad to 24"),
    ],
)
def test_inputs_that_do_not_fit(arguments, said):
    with pytest.raises(ValueError, match=said):
        network(cond_dim=3)(*arguments)


def test_the_shortest_input_that_is_accepted_runs():
    for options in ({}, {"strides": [2, 2, 1]}, {"strides": [1, 1, 1]}, {"strides": [2, 1, 1]}, {"learned_resample": True}):
        model = network(**options)
        x, t = noisy(model.params.min_frames)
        assert model(x, t).isfinite().all()


def test_conditions_it_has_no_place_for_are_refused():
    denoiser = validate(DecoderDenoiserConfig, {"type": "DAU1d", "config": {**SMALL, "cond_dim": 3}}, "test").build()
    x, t = noisy()
    with pytest.raises(ValueError, match="a DAU1d takes no global_cond, mask"):
        denoiser(x, t, input_concat_cond=torch.zeros(2, 3, 64), global_cond=torch.zeros(2, 3), mask=torch.ones(2, 64).bool())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"channels": [32, 32]}, ["config.channels", "channels has 2 entries for 4 levels (depth)", "set depth to 2"]),
        ({"strides": [2]}, ["config.strides", "strides has 1 entries for the 3 steps", "set depth to 2"]),
        ({"strides": [2, 4, 2]}, ["config.strides[1]", "stride 4 needs learned_resample", 'set "learned_resample": true']),
        ({"channels": [32, 32, 100, 64]}, ["config.channels[2]", "100 channels cannot be split into 3 attention heads", "multiple of 32"]),
        ({"kernel_size": 4}, ["config.kernel_size", "must be odd, got 4", "nearest: 5"]),
        ({"cond_noise_aug": True}, ["config.cond_noise_aug", "no effect without cond_dim"]),
        ({"cond_dim": 4}, ["config.cond_dim", "a diffusion_uncond model has no latents to see", "make a diffusion_autoencoder"]),
        ({"use_snakes": True}, ['unknown key "use_snakes"', 'did you mean "use_snake"?']),
    ],
)
def test_bad_settings_are_refused_with_place_and_fix(options, said):
    with pytest.raises(ConfigError) as error:
        validate(UnconditionalConfig, {"type": "DAU1d", "config": {**SMALL, **options}}, "test")
    assert [part for part in said if part not in str(error.value)] == []


def test_outside_of_training_no_random_number_is_drawn_for_latents_without_noise():
    torch.manual_seed(0)
    params = DAU1dParams(io_channels=1, depth=2, channels=(8, 8), strides=(2,), n_attn_layers=0, cond_dim=2, cond_noise_aug=True)
    model = DAU1d(params).eval()
    state = torch.get_rng_state()
    inputs = torch.ones(1, 1, 16), torch.full((1,), 0.5), torch.ones(1, 2, 16)
    assert torch.equal(model(*inputs), model(*inputs))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(model(*inputs, cond_aug_scale=0.5), model(*inputs))
