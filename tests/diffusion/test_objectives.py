"""Objectives: what is predicted leads back to what was mixed, in any precision."""

import pytest
import torch

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.objectives import OBJECTIVES, SIGMA_FLOOR, expand, parse_objective, velocity_from_x0

LEVELS = torch.tensor([0.0, 0.05, 0.3, 0.99, 1.0])
objectives = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def data(dtype=torch.float32):
    return torch.randn(2, len(LEVELS), 4, 16, generator=torch.Generator().manual_seed(0)).to(dtype)


@objectives
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_the_target_leads_back_to_data_and_noise(objective, dtype, tolerance):
    x0, noise = data(dtype)
    t = LEVELS.to(dtype)
    x_t = objective.add_noise(x0, noise, t)
    target = objective.target(x0, noise, t)
    torch.testing.assert_close(objective.denoised(x_t, target, t), x0, rtol=0, atol=tolerance)
    torch.testing.assert_close(objective.noise(x_t, target, t), noise, rtol=0, atol=tolerance)


@objectives
def test_the_ends_of_the_path_are_data_and_noise(objective):
    x0, noise = data(torch.float64)
    zero, one = torch.zeros(len(LEVELS), dtype=torch.float64), torch.ones(len(LEVELS), dtype=torch.float64)
    torch.testing.assert_close(objective.add_noise(x0, noise, zero), x0, rtol=0, atol=1e-15)
    torch.testing.assert_close(objective.add_noise(x0, noise, one), noise, rtol=0, atol=1e-15)


@objectives
def test_the_target_is_the_velocity_of_the_path(objective):
    """For the straight path by t, for the circle by its angle."""
    x0, noise = data(torch.float64)
    t, step = LEVELS[1:-1].double(), 1e-6
    x0, noise = x0[1:-1], noise[1:-1]
    by_t = (objective.add_noise(x0, noise, t + step) - objective.add_noise(x0, noise, t - step)) / (2 * step)
    speed = 1.0 if objective.name != "v" else torch.pi / 2
    torch.testing.assert_close(objective.target(x0, noise, t) * speed, by_t, rtol=0, atol=1e-8)


@objectives
def test_a_scalar_level_holds_for_every_item(objective):
    x0, noise = data()
    each = objective.add_noise(x0, noise, torch.full((len(LEVELS),), 0.3))
    torch.testing.assert_close(objective.add_noise(x0, noise, torch.tensor(0.3)), each)


@objectives
def test_half_precision_data_stay_half_precision(objective):
    x0, noise = data(torch.bfloat16)
    x_t = objective.add_noise(x0, noise, LEVELS)
    assert {y.dtype for y in (x_t, objective.target(x0, noise, LEVELS), objective.denoised(x_t, noise, LEVELS))} == {torch.bfloat16}


@objectives
def test_a_perfect_x0_gives_the_target_above_the_floor(objective):
    x0, noise = data(torch.float64)
    t = LEVELS.double()
    above = objective.alpha_sigma(t)[1] >= SIGMA_FLOOR
    velocity = velocity_from_x0(objective, objective.add_noise(x0, noise, t), x0, t)
    torch.testing.assert_close(velocity[above], objective.target(x0, noise, t)[above], rtol=0, atol=1e-12)


@objectives
def test_any_x0_comes_back_above_the_floor_and_stays_finite_below(objective):
    guess, x_t = data(torch.float64)
    t = LEVELS.double()
    above = objective.alpha_sigma(t)[1] >= SIGMA_FLOOR
    velocity = velocity_from_x0(objective, x_t, guess, t)
    assert velocity.isfinite().all()
    torch.testing.assert_close(objective.denoised(x_t, velocity, t)[above], guess[above], rtol=0, atol=1e-12)


def test_x0_on_the_straight_path_is_the_documented_formula():
    guess, x_t = data(torch.float64)
    t = LEVELS.double()
    expected = (x_t - guess) / t.clamp(min=0.1)[:, None, None]
    torch.testing.assert_close(velocity_from_x0(parse_objective("rectified_flow"), x_t, guess, t), expected)


def test_expand_fits_any_number_of_dimensions():
    assert expand(torch.ones(3), torch.ones(3, 2, 5)).shape == (3, 1, 1)
    assert expand(torch.ones(()), torch.ones(3, 2, 5)).shape == ()


def test_names():
    assert {name: parse_objective(name).default_sampler for name in OBJECTIVES} == {
        "v": "v-ddim",
        "rectified_flow": "euler",
        "rf_denoiser": "pingpong",
    }
    for objective in OBJECTIVES.values():
        assert objective.default_sampler in objective.samplers
    with pytest.raises(ConfigError, match=r"unknown diffusion objective 'rectified-flow'\n.*did you mean \"rectified_flow\"\?"):
        parse_objective("rectified-flow")
