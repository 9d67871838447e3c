"""Samplers: exact where theory says so, of their order elsewhere, equal to published numbers, strict about names."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.grids import linear_grid, logsnr_grid, schedule
from stable_audio_tools.diffusion.objectives import expand, parse_objective
from stable_audio_tools.diffusion.samplers import SAMPLERS, Prediction, Sampler, find_sampler, make_field, noise_like, register_sampler
from stable_audio_tools.diffusion.timesteps import LengthShift

REFERENCE = load_file(Path(__file__).parents[1] / "reference" / "samplers.safetensors")
FLOW, V = parse_objective("rectified_flow"), parse_objective("v")
FLOW_SAMPLERS = ("euler", "heun", "rk4", "dpmpp", "pingpong")


def objective_of(name):
    return V if name.startswith("v-") else FLOW


def run(name, field, x, ts, **options):
    return SAMPLERS[name].function(field, x, ts, **options)


# published numbers


def reference_denoised(x):
    return torch.tanh(0.5 * x + 0.3 * REFERENCE["x0"])


def reference_field(objective):
    def flow(x, t):
        return (x - reference_denoised(x)) / expand(t.clamp(min=1e-3), x)

    def v(x, t):
        alpha, sigma = objective.alpha_sigma(t)
        return (expand(alpha, x) * x - reference_denoised(x)) / expand(sigma, x)

    return make_field(v if objective is V else flow, objective)


SHIFT = LengthShift(min_length=16, max_length=256)


@pytest.mark.parametrize("name", ["euler", "rk4", "dpmpp"])
@pytest.mark.parametrize("shift", [None, SHIFT], ids=["", "_distshift"])
def test_published_numbers_on_even_steps(name, shift):
    key = f"rf.direct_{name}.steps8" + ("_distshift" if shift else "")
    result = run(name, reference_field(FLOW), REFERENCE["noise"], linear_grid(8, shift=shift, length=32))
    torch.testing.assert_close(result, REFERENCE[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["euler", "dpmpp"])
def test_published_numbers_on_the_logsnr_schedule(name):
    result = run(name, reference_field(FLOW), REFERENCE["noise"], schedule(FLOW, 8, length=32))
    torch.testing.assert_close(result, REFERENCE[f"rf.{name}.steps8"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "key, objective, level, grid",
    [
        ("rf.euler.steps8_init_smax0.7", FLOW, 0.7, logsnr_grid),
        ("rf.dpmpp.steps8_init_smax0.7", FLOW, 0.7, logsnr_grid),
        ("rf.rk4.steps8_init_smax0.7", FLOW, 0.7, linear_grid),
        ("v.v-ddim.init_smax0.6", V, 0.6, linear_grid),
    ],
)
def test_published_numbers_of_variations(key, objective, level, grid):
    x = objective.add_noise(REFERENCE["x0"], REFERENCE["noise"], torch.tensor(level))
    result = run(key.split(".")[1], reference_field(objective), x, grid(8, sigma_max=level))
    torch.testing.assert_close(result, REFERENCE[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [None, SHIFT], ids=["", "_distshift"])
def test_published_numbers_of_v_ddim(shift):
    key = "v.sample_eta0_steps8_distshift" if shift else "v.v-ddim.steps8"
    result = run("v-ddim", reference_field(V), REFERENCE["noise"], schedule(V, 8, length=32, shift=shift))
    torch.testing.assert_close(result, REFERENCE[key], rtol=0, atol=1e-6)


def test_published_numbers_with_the_unconditional_noise_of_cfgpp():
    plain = reference_field(V)

    def field(x, t):
        output, x0, _ = plain(x, t)
        return Prediction(output, x0, V.noise(x, 0.5 * output, t))

    result = run("v-ddim", field, REFERENCE["noise"], linear_grid(8))
    torch.testing.assert_close(result, REFERENCE["v.v-ddim-cfgpp.steps8"], rtol=0, atol=1e-6)


def test_published_numbers_of_stochastic_samplers():
    """They draw once a step, so the global generator gives the published noise."""
    torch.manual_seed(0)
    result = run("pingpong", reference_field(FLOW), REFERENCE["noise"], linear_grid(8))
    torch.testing.assert_close(result, REFERENCE["seeded.rf.direct_pingpong.steps8"], rtol=0, atol=1e-6)
    torch.manual_seed(0)
    result = run("v-ddim", reference_field(V), REFERENCE["noise"], linear_grid(8), eta=1.0)
    torch.testing.assert_close(result, REFERENCE["seeded.v.sample_eta1_steps8"], rtol=0, atol=1e-6)


# theory


def gaussian_field(objective, mean=0.7, std=0.4):
    """The exact field of data distributed as N(mean, std^2)."""

    def x0(x, t):
        alpha, sigma = (expand(c, x) for c in objective.alpha_sigma(t))
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)

    def field(x, t):
        alpha, sigma = (expand(c, x) for c in objective.alpha_sigma(t))
        clean = x0(x, t)
        noise = (x - alpha * clean) / sigma.clamp(min=1e-12)
        if objective is V:
            return Prediction(alpha * noise - sigma * clean, clean, noise)
        slope = ((1 - t).neg() * std**2 + t) / ((1 - t) ** 2 * std**2 + t**2)  # d log S / dt
        return Prediction(-mean + expand(slope, x) * (x - alpha * mean), clean, noise)

    return field


def start(shape=(4, 2, 8), dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "rk4"])  # it asks for the velocity at t = 0: there is none
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_one_point_of_data_is_found_exactly_in_any_number_of_steps(name, steps):
    objective = objective_of(name)
    x0 = start()

    def output(x, t):
        alpha, sigma = objective.alpha_sigma(t.clamp(min=1e-9))
        noise = (x - expand(alpha, x) * x0) / expand(sigma, x)
        return objective.target(x0, noise, t)

    result = run(name, make_field(output, objective), torch.randn_like(x0), schedule(objective, steps, length=8))
    torch.testing.assert_close(result, x0, rtol=0, atol=1e-6)


def test_euler_is_exact_on_straight_trajectories():
    velocity = start()
    field = make_field(lambda x, t: velocity, FLOW)
    x = torch.ones_like(velocity)
    for steps in (1, 5):
        torch.testing.assert_close(run("euler", field, x, linear_grid(steps)), x - velocity)


@pytest.mark.parametrize("name, order", [("euler", 1), ("heun", 2), ("rk4", 4), ("dpmpp", 2), ("v-ddim", 1)])
def test_order_of_convergence(name, order):
    """Halving the step divides the error by 2^order; the trajectory to N(m, s^2) data ends at m + s x."""
    objective, x = objective_of(name), start()
    field, exact = gaussian_field(objective, std=0.2), 0.7 + 0.2 * x
    if name == "dpmpp":  # its order holds in even logSNR steps, away from the ends where they are infinite
        return _assert_order_in_logsnr(field, x, order)
    errors = [(run(name, field, x, linear_grid(n)) - exact).abs().max() for n in (32, 64, 128)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


def _assert_order_in_logsnr(field, x, order):
    def state(t, x1):
        return (1 - t) * 0.7 + math.sqrt((1 - t) ** 2 * 0.04 + t**2) * x1

    high, low = (1 / (1 + math.exp(logsnr)) for logsnr in (-4, 3))
    errors = []
    for n in (32, 64, 128):
        ts = torch.sigmoid(-torch.linspace(-4, 3, n + 1, dtype=torch.float64))
        errors.append((run("dpmpp", field, state(high, x), ts) - state(low, x)).abs().max())
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_keeps_the_distribution_whatever_eta(eta):
    x = start((1, 1, 20_000))
    result = run("v-ddim", gaussian_field(V), x, linear_grid(200), generator=torch.Generator().manual_seed(0), eta=eta)
    assert result.mean() == pytest.approx(0.7, abs=0.02) and result.std() == pytest.approx(0.4, abs=0.015)


def test_pingpong_with_a_consistency_function_samples_the_data():
    """A model that maps any point of a trajectory to its end, as few-step distillation aims for."""

    def field(x, t):
        alpha, sigma = (expand(c, x) for c in FLOW.alpha_sigma(t))
        return Prediction(x, 0.7 + 0.4 * (x - alpha * 0.7) / (alpha**2 * 0.16 + sigma**2).sqrt(), x)

    result = run("pingpong", field, start((1, 1, 20_000)), linear_grid(4), generator=torch.Generator().manual_seed(0))
    assert result.mean() == pytest.approx(0.7, abs=0.02) and result.std() == pytest.approx(0.4, abs=0.015)


# the seam


@pytest.mark.parametrize("name", SAMPLERS)
def test_callback_sees_every_step_and_changes_nothing(name):
    objective, x, seen = objective_of(name), start(), []
    field, ts = gaussian_field(objective), schedule(objective_of(name), 5, length=8)
    noise = [torch.Generator().manual_seed(0) for _ in range(2)]
    quiet = run(name, field, x, ts, generator=noise[0])
    assert torch.equal(quiet, run(name, field, x, ts, generator=noise[1], callback=seen.append))
    assert [step.index for step in seen] == list(range(5))
    assert [step.t for step in seen] == ts[:-1].tolist()
    assert torch.equal(seen[0].x, x)
    for step in seen:
        torch.testing.assert_close(step.x0, field(step.x, torch.full((4,), step.t, dtype=torch.float64)).x0)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_precision_is_kept_and_the_model_is_told_exact_levels(name, dtype):
    levels = []

    def output(x, t):
        levels.append(t)
        return 0.1 * x

    x = start(dtype=dtype)
    result = run(name, make_field(output, objective_of(name)), x, linear_grid(3))
    assert result.dtype == dtype and result.isfinite().all()
    assert {t.dtype for t in levels} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert {t.shape for t in levels} == {(4,)}


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp", "pingpong", "v-ddim"])
def test_the_model_is_not_asked_about_clean_data(name):
    levels = []

    def output(x, t):
        levels.append(float(t[0]))
        return x

    run(name, make_field(output, objective_of(name)), start(), linear_grid(4))
    assert min(levels) > 0


@pytest.mark.parametrize("name, options", [("pingpong", {}), ("v-ddim", {"eta": 1.0})])
def test_an_items_noise_does_not_depend_on_its_batch(name, options):
    objective = objective_of(name)
    x = start()

    def sample(items):
        generators = [torch.Generator().manual_seed(i) for i in items]
        return run(name, gaussian_field(objective), x[items], linear_grid(4), generator=generators, **options)

    torch.testing.assert_close(sample([0, 1, 2, 3])[[2, 3]], sample([2, 3]))


def test_noise_is_the_same_in_every_precision():
    single, double = (noise_like(torch.empty(2, 3, dtype=d), torch.Generator().manual_seed(0)) for d in (torch.float32, torch.float64))
    assert torch.equal(single.double(), double)
    with pytest.raises(ValueError, match="3 generators for a batch of 2; give one for each item"):
        noise_like(torch.empty(2, 3), [torch.Generator()] * 3)


def test_deterministic_samplers_draw_nothing():
    before = torch.get_rng_state()
    for name in ("euler", "heun", "rk4", "dpmpp", "v-ddim"):
        run(name, gaussian_field(objective_of(name)), start(), linear_grid(3))
    assert torch.equal(before, torch.get_rng_state())


# names


def test_each_objective_lists_its_samplers():
    assert FLOW.samplers == parse_objective("rf_denoiser").samplers == FLOW_SAMPLERS
    assert V.samplers == ("v-ddim", "v-ddim-cfgpp")


def test_default_samplers():
    assert find_sampler(None, FLOW) is SAMPLERS["euler"]
    assert find_sampler(None, parse_objective("rf_denoiser")) is SAMPLERS["pingpong"]
    assert find_sampler(None, V, {"eta": 1.0}) is SAMPLERS["v-ddim"]


@pytest.mark.parametrize(
    "name, objective, options, message",
    [
        ("eulr", FLOW, {}, r"sampler: unknown sampler 'eulr'\n.*did you mean \"euler\"\? known: euler, heun, rk4, dpmpp, pingpong"),
        ("dpmpp-3m-sde", V, {}, r"unknown sampler 'dpmpp-3m-sde'\n.*known: v-ddim, v-ddim-cfgpp"),
        ("euler", V, {}, r"sampler 'euler' does not fit the objective 'v'\n.*use one of v-ddim, v-ddim-cfgpp"),
        ("v-ddim", FLOW, {}, r"does not fit the objective 'rectified_flow'\n.*use one of euler, heun, rk4, dpmpp, pingpong"),
        ("euler", FLOW, {"eta": 1.0}, r"sampler 'euler' has no option eta\n.*it takes no options"),
        (None, V, {"sigma_min": 0.3, "rho": 1}, r"sampler 'v-ddim' has no option sigma_min, rho\n.*it takes eta"),
    ],
)
def test_wrong_samplers_are_told(name, objective, options, message):
    with pytest.raises(ConfigError, match=message):
        find_sampler(name, objective, options)


def test_a_plugin_can_add_a_sampler(monkeypatch):
    monkeypatch.setattr("stable_audio_tools.diffusion.samplers.SAMPLERS", dict(SAMPLERS))
    mine = Sampler(SAMPLERS["euler"].function, (type(FLOW),))
    register_sampler("mine", mine)
    assert "mine" in FLOW.samplers and find_sampler("mine", FLOW) is mine
    with pytest.raises(ValueError, match="sampler 'euler' is already registered"):
        register_sampler("euler", mine)
