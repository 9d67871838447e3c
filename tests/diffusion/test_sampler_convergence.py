"""Samplers against what theory says of data distributed as N(MEAN, STD^2), whose trajectories and fields are known exactly.

The trajectory through noise z is x_t = alpha MEAN + sqrt(alpha^2 STD^2 + sigma^2) z, for every objective.
"""

import math
from itertools import pairwise

import pytest
import torch

from stable_audio_tools.diffusion.grids import Ratios, linear_grid, ratio_grid
from stable_audio_tools.diffusion.objectives import expand, parse_objective
from stable_audio_tools.diffusion.samplers import SAMPLERS, Prediction, find_sampler

MEAN, STD = 0.7, 0.2
FLOW, V = parse_objective("rectified_flow"), parse_objective("v")

ORDERS = {
    "euler": 1,
    "heun": 2,
    "rk4": 4,
    "dpmpp": 2,
    "euler-cfgpp": 1,
    "v-ddim": 1,
    "v-ddim-cfgpp": 1,
    "dpmpp-2m": 2,
    "dpmpp-2m-sde": 2,
    "dpmpp-3m-sde": 3,
    "k-heun": 2,
    "k-lms": 4,
    "k-dpmpp-2s-ancestral": 2,
    "k-dpm-2": 2,
    "k-dpm-fast": 3,
}
"""Those of ordinary differential equations, so without fresh noise."""

NOISY = [("v-ddim", V), ("k-dpmpp-2s-ancestral", V), ("k-dpmpp-2s-ancestral", FLOW)]
NOISY += [(name, objective) for name in ("dpmpp-2m-sde", "dpmpp-3m-sde") for objective in (V, FLOW)]


def case_name(value):
    return getattr(value, "name", value)


CASES = [(name, objective) for name in ORDERS for objective in (FLOW, V) if name in objective.samplers]


def exact_field(objective):
    def field(x, t):
        alpha, sigma = (expand(c, x) for c in objective.alpha_sigma(t))
        x0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        noise = (x - alpha * x0) / sigma
        return Prediction(objective.target(x0, noise, t), x0, noise)

    return field


def trajectory(objective, z, t):
    alpha, sigma = objective.weights(t)
    return alpha * MEAN + math.sqrt(alpha**2 * STD**2 + sigma**2) * z


def levels(name, objective, steps):
    """Where the method is at its order: even in its own variable, without the ends, where some of them are infinite."""
    if name == "dpmpp" or SAMPLERS[name].ratios:
        return ratio_grid(objective, steps + 1, Ratios(0.05, 20.0))[:-1]
    return linear_grid(steps + 2)[1:-1] * 0.9 + 0.05


def error(name, objective, steps):
    ts, z = levels(name, objective, steps), torch.linspace(-2, 2, 9, dtype=torch.float64).expand(1, 1, 9)
    options = {"eta": 0.0} if "eta" in SAMPLERS[name].options else {}
    sampler = find_sampler(name, objective, options)
    result = sampler.sample(exact_field(objective), trajectory(objective, z, float(ts[0])), ts)
    return float((result - trajectory(objective, z, float(ts[-1]))).abs().max())


def measured_orders(name, objective, counts):
    return [math.log2(coarse / fine) for coarse, fine in pairwise(error(name, objective, n) for n in counts)]


def counts(name, *numbers):
    # Of k-dpm-fast, n evaluations are n // 3 steps of third order and what is left, here always one of second order.
    return [3 * n - 1 for n in numbers] if name == "k-dpm-fast" else numbers


@pytest.mark.parametrize(
    "name, objective",
    [("euler", FLOW), ("heun", FLOW), ("rk4", FLOW), ("dpmpp", FLOW), ("v-ddim", V), ("dpmpp-2m", V), ("dpmpp-3m-sde", V), ("k-heun", V)],
    ids=case_name,
)
def test_halving_the_step_divides_the_error_by_two_to_the_order(name, objective):
    assert measured_orders(name, objective, counts(name, 64, 128))[0] == pytest.approx(ORDERS[name], abs=0.25)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name, objective", CASES, ids=case_name)
def test_every_sampler_is_of_its_order(name, objective):
    orders = measured_orders(name, objective, counts(name, 128, 256, 512))
    print(name, objective.name, *(f"{order:.2f}" for order in orders))
    assert orders[-1] == pytest.approx(ORDERS[name], abs=0.3)


def test_no_sampler_is_left_out():
    assert set(ORDERS) == set(SAMPLERS) - {"pingpong", "k-dpm-adaptive"}
    assert {name for name, sampler in SAMPLERS.items() if "eta" in sampler.options} - {"v-ddim-cfgpp"} == {name for name, _ in NOISY}


@pytest.mark.parametrize("objective", [FLOW, V], ids=case_name)
def test_an_adaptive_sampler_keeps_its_tolerance(objective):
    ts, z = levels("k-dpm-adaptive", objective, 4), torch.linspace(-2, 2, 9, dtype=torch.float64).expand(1, 1, 9)
    evaluations, errors = [], []
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
        asked = []
        sampler = find_sampler("k-dpm-adaptive", objective, {"rtol": tolerance, "atol": tolerance})

        def field(x, t, asked=asked):
            asked.append(t)
            return exact_field(objective)(x, t)

        result = sampler.sample(field, trajectory(objective, z, float(ts[0])), ts)
        errors.append(float((result - trajectory(objective, z, float(ts[-1]))).abs().max()))
        evaluations.append(len(asked))
        assert errors[-1] < 3 * tolerance  # each step is within it, and some add up
    assert evaluations == sorted(evaluations) and errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("name, objective", NOISY, ids=case_name)
@pytest.mark.slow
def test_fresh_noise_keeps_the_distribution(name, objective, eta):
    """Mean and deviation at the end are those of the noised data, within four standard errors."""
    items, ts = 20_000, levels(name, objective, 500 if name == "v-ddim" else 128)  # v-ddim is of first order
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 1, items, generator=generator, dtype=torch.float64)
    sampler = find_sampler(name, objective, {"eta": eta})
    result = sampler.sample(exact_field(objective), trajectory(objective, z, float(ts[0])), ts, generator=generator)
    alpha, sigma = objective.weights(float(ts[-1]))
    std = math.sqrt(alpha**2 * STD**2 + sigma**2)
    assert float(result.mean()) == pytest.approx(alpha * MEAN, abs=4 * std / math.sqrt(items))
    assert float(result.std()) == pytest.approx(std, abs=4 * std / math.sqrt(2 * items))
    # Fresh noise it is: nothing of where a trajectory began is left after ancestral sampling, and less for the share that there is.
    assert abs(float(torch.corrcoef(torch.stack((z.flatten(), result.flatten())))[0, 1])) < (0.9 if eta < 1 else 0.2)
