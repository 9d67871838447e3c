"""Samplers: exact where theory says so, of their order elsewhere, equal to published numbers, strict about names."""

import math
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
CASES = [(name, objective) for objective in (FLOW, V) for name in objective.samplers]
RATIO_SAMPLERS = [name for name, sampler in SAMPLERS.items() if sampler.ratios]
OWN_STEPS = ("k-dpm-fast", "k-dpm-adaptive")


def case_name(value):
    return getattr(value, "name", value)


every_case = pytest.mark.parametrize("name, objective", CASES, ids=case_name)


def run(name, field, x, ts, *, objective=None, generator=None, callback=None, **options):
    """Of objectives that the sampler fits, the one given, else the first of flow and v."""
    objective = objective or (FLOW if name in FLOW.samplers else V)
    return find_sampler(name, objective, options).sample(field, x, ts, generator=generator, callback=callback)


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

    result = run("v-ddim-cfgpp", field, REFERENCE["noise"], linear_grid(8))
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


@pytest.mark.parametrize("name, objective", [case for case in CASES if case[0] != "rk4"], ids=case_name)  # that ends without denoising
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_one_point_of_data_is_found_exactly_in_any_number_of_steps(name, objective, steps):
    x0 = start()

    def output(x, t):
        alpha, sigma = objective.alpha_sigma(t.clamp(min=1e-9))
        noise = (x - expand(alpha, x) * x0) / expand(sigma, x)
        return objective.target(x0, noise, t)

    ts = find_sampler(name, objective).schedule(steps, length=8)
    result = run(name, make_field(output, objective), objective.add_noise(x0, torch.randn_like(x0), ts[0]), ts, objective=objective)
    torch.testing.assert_close(result, x0, rtol=0, atol=1e-6)


def test_euler_is_exact_on_straight_trajectories():
    velocity = start()
    field = make_field(lambda x, t: velocity, FLOW)
    x = torch.ones_like(velocity)
    for steps in (1, 5):
        torch.testing.assert_close(run("euler", field, x, linear_grid(steps)), x - velocity)


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


@every_case
def test_callback_sees_every_step_and_changes_nothing(name, objective):
    x, seen = start((1, 2, 8)), []  # one item, since k-dpm-adaptive has steps for each
    field, ts = gaussian_field(objective), find_sampler(name, objective).schedule(5, length=8)
    noise = [torch.Generator().manual_seed(0) for _ in range(2)]
    quiet = run(name, field, x, ts, objective=objective, generator=noise[0])
    assert torch.equal(quiet, run(name, field, x, ts, objective=objective, generator=noise[1], callback=seen.append))
    if name in OWN_STEPS:
        assert [step.index for step in seen] == sorted(step.index for step in seen)
        assert (seen[0].index, seen[-1].index) == (0, 4) and seen[-1].t == ts[-2]
    else:
        assert [step.index for step in seen] == list(range(5))
        assert [step.t for step in seen] == ts[:-1].tolist()
    torch.testing.assert_close(seen[0].x, x)
    for step in seen:
        torch.testing.assert_close(step.x0, field(step.x, torch.full((1,), step.t, dtype=torch.float64)).x0)


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_precision_is_kept_and_the_model_is_told_exact_levels(name, objective, dtype):
    levels = []

    def output(x, t):
        levels.append(t)
        return 0.1 * x

    x = start(dtype=dtype)
    result = run(name, make_field(output, objective), x, find_sampler(name, objective).schedule(3, length=8), objective=objective)
    assert result.dtype == dtype and result.isfinite().all()
    assert {t.dtype for t in levels} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert {t.shape for t in levels} == {(4,)}


@pytest.mark.parametrize("name", RATIO_SAMPLERS)
def test_ratios_beyond_half_precision_are_finite(name):
    x, field = start(), gaussian_field(V)
    ts = find_sampler(name, V, {"sigma_max": 9e4}).schedule(40, length=8)
    options = {"eta": 0.0} if "eta" in SAMPLERS[name].options else {}
    single, half = (run(name, field, x.to(dtype), ts, objective=V, **options) for dtype in (torch.float32, torch.float16))
    assert half.dtype == torch.float16 and half.isfinite().all()
    if name != "k-dpm-adaptive":  # whose steps follow from errors of rounding, too
        torch.testing.assert_close(half.float(), single, rtol=0, atol=0.05)


@every_case
def test_the_model_is_not_asked_about_clean_data(name, objective):
    levels = []

    def output(x, t):
        levels.append(float(t.min()))
        return 0.1 * x

    run(name, make_field(output, objective), start(), find_sampler(name, objective).schedule(4, length=8), objective=objective)
    assert (min(levels) > 0) == (name != "rk4")


@every_case
def test_a_clip_does_not_depend_on_its_batch(name, objective):
    x = start()
    options = {"eta": 1.0} if "eta" in SAMPLERS[name].options else {}
    field, ts = gaussian_field(objective), find_sampler(name, objective).schedule(4, length=8)

    def sample(items):
        generators = [torch.Generator().manual_seed(i) for i in items]
        return run(name, field, x[items], ts, objective=objective, generator=generators, **options)

    torch.testing.assert_close(sample([0, 1, 2, 3])[[2, 3]], sample([2, 3]), rtol=1e-12, atol=1e-12)


def test_noise_is_the_same_in_every_precision():
    single, double = (noise_like(torch.empty(2, 3, dtype=d), torch.Generator().manual_seed(0)) for d in (torch.float32, torch.float64))
    assert torch.equal(single.double(), double)
    with pytest.raises(ValueError, match="3 generators for a batch of 2; give one for each item"):
        noise_like(torch.empty(2, 3), [torch.Generator()] * 3)


@every_case
def test_only_samplers_of_fresh_noise_draw_and_only_where_it_is_asked_for(name, objective):
    def draws(**options):
        before = torch.get_rng_state()
        run(name, gaussian_field(objective), start(), find_sampler(name, objective).schedule(3, length=8), objective=objective, **options)
        return not torch.equal(before, torch.get_rng_state())

    if "eta" in SAMPLERS[name].options:
        assert draws(eta=0.5) and not draws(eta=0.0)
    else:
        assert draws() == (name == "pingpong")


def test_samplers_in_ratios_say_where_they_start():
    for name in ("k-heun", "k-lms", "k-dpm-2", "k-dpmpp-2s-ancestral", "k-dpm-fast", "k-dpm-adaptive"):
        with pytest.raises(ValueError, match="this sampler starts below t = 1"):
            run(name, gaussian_field(FLOW), start(), linear_grid(4))


def test_an_adaptive_sampler_gives_up_on_predictions_that_are_not_finite():
    field = make_field(lambda x, t: x * float("nan"), V)
    with pytest.raises(RuntimeError, match="k-dpm-adaptive finds no step within its tolerance"):
        run("k-dpm-adaptive", field, start(), find_sampler("k-dpm-adaptive", V).schedule(4, length=8), objective=V)


# names


def test_each_objective_lists_its_samplers():
    both = ("euler", "heun", "rk4", "pingpong", *RATIO_SAMPLERS)
    assert FLOW.samplers == parse_objective("rf_denoiser").samplers
    assert set(FLOW.samplers) == {*both, "dpmpp", "euler-cfgpp"}
    assert set(V.samplers) == {*both, "v-ddim", "v-ddim-cfgpp"}


def test_every_sampler_that_upstream_offers_is_here():
    upstream = {"k-heun", "k-lms", "k-dpmpp-2s-ancestral", "k-dpm-2", "k-dpm-fast", "k-dpm-adaptive", "dpmpp-2m", "dpmpp-2m-sde"}
    assert upstream | {"dpmpp-3m-sde", "v-ddim", "v-ddim-cfgpp"} <= set(V.samplers)
    assert {"euler", "rk4", "dpmpp", "pingpong"} <= set(FLOW.samplers)


def test_default_samplers():
    assert find_sampler(None, FLOW).name == "euler"
    assert find_sampler(None, parse_objective("rf_denoiser")).name == "pingpong"
    assert find_sampler(None, V, {"eta": 1.0}).name == "v-ddim"


@pytest.mark.parametrize(
    "name, objective, options, message",
    [
        ("eulr", FLOW, {}, r"sampler: unknown sampler 'eulr'\n.*did you mean \"euler\"\? known: euler, heun, rk4, dpmpp, pingpong"),
        ("dpmpp-4m", V, {}, r"unknown sampler 'dpmpp-4m'\n.*did you mean \"dpmpp-2m\"\?"),
        ("dpmpp", V, {}, r"sampler 'dpmpp' does not fit the objective 'v'\n.*use one of euler, heun, .*v-ddim, v-ddim-cfgpp"),
        ("v-ddim", FLOW, {}, r"does not fit the objective 'rectified_flow'\n.*use one of euler, heun, rk4, dpmpp, pingpong"),
        (
            "euler",
            V,
            {"eta": 1.0},
            r"sampler 'euler' has no option eta\n.*it takes no options; taken by v-ddim, v-ddim-cfgpp",
        ),
        (
            None,
            V,
            {"sigma_min": 0.3, "rho": 1},
            r"sampler 'v-ddim' has no option sigma_min, rho\n.*it takes eta; taken by dpmpp-2m, ",
        ),
        ("v-ddim", V, {"eta": 1.5}, r"sampler v-ddim: .*eta is 1.5\n.*give a number from 0 to 1; default 0"),
        ("k-lms", V, {"order": 2.5}, r"order is 2.5\n.*give a whole number from 1 to 4; default 4"),
        ("k-heun", V, {"rho": float("nan"), "sigma_min": "0.1"}, r"2 problem(.|\n)*rho is nan(.|\n)*sigma_min is '0.1'"),
    ],
)
def test_wrong_samplers_are_told(name, objective, options, message):
    with pytest.raises(ConfigError, match=message):
        find_sampler(name, objective, options)


@every_case
def test_options_are_described_and_their_defaults_are_values_they_take(name, objective):
    options = SAMPLERS[name].options
    assert SAMPLERS[name].help
    find_sampler(name, objective, {key: int(option.default) if option.whole else option.default for key, option in options.items()})
    for option in options.values():
        assert option.help and option.low <= option.default <= option.high < math.inf


def test_a_plugin_can_add_a_sampler(monkeypatch):
    monkeypatch.setattr("stable_audio_tools.diffusion.samplers.SAMPLERS", dict(SAMPLERS))
    mine = Sampler(SAMPLERS["euler"].function, (type(FLOW),))
    register_sampler("mine", mine)
    assert "mine" in FLOW.samplers and find_sampler("mine", FLOW).sampler is mine
    with pytest.raises(ValueError, match="sampler 'euler' is already registered"):
        register_sampler("euler", mine)
