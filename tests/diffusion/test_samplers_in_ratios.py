"""Samplers that step in ratios of noise to data, against published numbers, and from where they start.

`v.*` and `seeded.*` are upstream's, as in `samplers.safetensors`; `k_diffusion *` were made by k-diffusion 0.1.1 in a process of its
own, of the same denoiser and start, with 8 polyexponential ratios from 50 to 0.03 and fresh noise of torch.randn from seed 0.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.grids import Ratios, linear_grid, ratio_grid, schedule
from stable_audio_tools.diffusion.objectives import expand, parse_objective
from stable_audio_tools.diffusion.samplers import SAMPLERS, find_sampler, make_field
from stable_audio_tools.diffusion.timesteps import ConstantShift

FOLDER = Path(__file__).parents[1] / "reference"
REFERENCE = load_file(FOLDER / "samplers.safetensors") | load_file(FOLDER / "samplers_in_ratios.safetensors")
FLOW, V = parse_objective("rectified_flow"), parse_objective("v")
RANGE = {"sigma_min": 0.03, "sigma_max": 50.0}
RATIO_SAMPLERS = [name for name, sampler in SAMPLERS.items() if sampler.ratios]


def reference_field(x0):
    """tanh(x / 2 + 0.3 x0) is the clean data."""

    def velocity(x, t):
        alpha, sigma = V.alpha_sigma(t)
        return (expand(alpha, x) * x - torch.tanh(0.5 * x + 0.3 * x0)) / expand(sigma, x)

    return make_field(velocity, V)


def made(name, ts=None, shape=(2, 4, 32), data=0.0, **options):
    x0, noise = (REFERENCE[key].reshape(shape) for key in ("x0", "noise"))
    sampler = find_sampler(name, V, RANGE | options)
    ts = sampler.schedule(8, length=32) if ts is None else ts
    torch.manual_seed(0)
    return sampler.sample(reference_field(x0), V.add_noise(data * x0, noise, ts[0]), ts).reshape(2, 4, 32)


@pytest.mark.parametrize("name", ["dpmpp-2m", "k-heun", "k-lms", "k-dpm-2"])
def test_upstreams_numbers(name):
    torch.testing.assert_close(made(name), REFERENCE[f"v.{name}.steps8_smin0.03_smax50_rho1"], rtol=0, atol=2e-6)


def test_upstreams_numbers_of_fresh_noise():
    torch.testing.assert_close(made("k-dpmpp-2s-ancestral"), REFERENCE["seeded.v.k-dpmpp-2s-ancestral.steps8"], rtol=0, atol=2e-6)


def test_upstreams_numbers_of_a_variation():
    torch.testing.assert_close(made("dpmpp-2m", data=1.0, sigma_max=1.0), REFERENCE["v.dpmpp-2m.init_smax1"], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "name, shape, tolerance",
    [("k-dpm-fast", (2, 4, 32), 2e-6), ("k-dpm-adaptive", (1, 8, 32), 5e-4)],  # upstream's adaptive steps are of the batch as a whole
)
def test_upstreams_numbers_of_samplers_that_stop_at_the_last_ratio(name, shape, tolerance):
    """There they leave noise in the result; ours denoise it, where the levels end at 0."""
    ts = ratio_grid(V, 9, Ratios(**RANGE))[:-1]
    result = made(name, ts, shape) / V.weights(float(ts[-1]))[0]
    torch.testing.assert_close(result, REFERENCE[f"v.{name}.steps8_smin0.03_smax50_rho1"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("key", [key for key in REFERENCE if key.startswith("k_diffusion ")])
def test_k_diffusions_numbers(key):
    _, name, *options = key.split()
    values = {option: int(value) if option == "order" else float(value) for option, value in (each.split("=") for each in options)}
    torch.testing.assert_close(made(name, **values), REFERENCE[key], rtol=0, atol=5e-6)


def test_the_published_ratios():
    ts = ratio_grid(V, 8, Ratios(**RANGE))
    ratios = torch.tensor([V.ratio(t) for t in ts.tolist()])
    torch.testing.assert_close(ratios, REFERENCE["k.sigmas_polyexp_steps8_0.03_50_rho1"], rtol=1e-5, atol=0)


# the schedule


@pytest.mark.parametrize("objective", [FLOW, V], ids=lambda o: o.name)
@pytest.mark.parametrize("shift", [None, ConstantShift(shift=3.0)], ids=str)
@pytest.mark.parametrize("options", [{}, {"sigma_max": 500.0, "sigma_min": 0.3}, {"rho": 3.0}], ids=str)
@pytest.mark.parametrize("level", [1.0, 0.5, 0.001])
def test_the_levels_fall_from_a_finite_ratio_to_zero(objective, shift, options, level):
    if level < 1:
        options = {key: value for key, value in options.items() if key != "sigma_max"}
    ts = find_sampler("k-heun", objective, options).schedule(20, length=64, shift=shift, noise_level=level)
    assert ts.shape == (21,) and ts[-1] == 0 and (ts.diff() < 0).all()
    assert ts[0] == min(level, objective.level(options.get("sigma_max", 100.0)))


def test_a_shift_is_followed_unless_ratios_are_asked_for():
    shift = ConstantShift(shift=3.0)
    chosen, named = (find_sampler("dpmpp-2m", V, options) for options in ({}, RANGE))
    followed = chosen.schedule(8, length=64, shift=shift)
    torch.testing.assert_close(followed, linear_grid(8, sigma_max=V.level(100.0), shift=shift))
    assert not torch.allclose(followed, chosen.schedule(8, length=64))
    assert torch.equal(named.schedule(8, length=64, shift=shift), named.schedule(8, length=64))


def test_other_samplers_share_the_schedule_of_their_objective():
    shift = ConstantShift(shift=3.0)
    for objective in (FLOW, V):
        for name in set(objective.samplers) - set(RATIO_SAMPLERS):
            expected = schedule(objective, 9, length=64, shift=shift, sigma_max=0.8)
            assert torch.equal(find_sampler(name, objective).schedule(9, length=64, shift=shift, noise_level=0.8), expected)


@pytest.mark.parametrize("rho, quarter", [(1.0, 0.25), (2.0, 0.0625)])
def test_rho_moves_steps_towards_sigma_min(rho, quarter):
    ts = ratio_grid(V, 5, Ratios(0.01, 100.0, rho))
    logs = torch.tensor([V.ratio(t) for t in ts[:-1].tolist()]).log()
    assert float((logs[3] - logs[4]) / (logs[0] - logs[4])) == pytest.approx(quarter, abs=1e-6)


@pytest.mark.parametrize(
    "options, level, message",
    [
        ({"sigma_min": 5.0, "sigma_max": 2.0}, 1.0, r"sigma_min is 5, sigma_max 2, rho 1\n.*below sigma_max"),
        ({"sigma_max": 50.0}, 0.5, r"init_noise_level and sigma_max both say where to start\n.*give one of them"),
        ({}, 7.0, r"init_noise_level is 7, and at 1 nothing is left of the audio\n.*as upstream has it, is sigma_max=7"),
    ],
)
def test_bad_starts_are_told(options, level, message):
    with pytest.raises(ConfigError, match=message):
        find_sampler("dpmpp-2m", V, options).schedule(8, length=64, noise_level=level)
