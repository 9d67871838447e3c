"""Every sampler in generation: finite for every kind of model, on the model's own schedule, as it was asked for."""

import configs
import pytest
import torch

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.objectives import OBJECTIVES
from stable_audio_tools.diffusion.samplers import SAMPLERS, find_sampler
from stable_audio_tools.inference.generation import generate_diffusion_cond, generate_diffusion_uncond
from stable_audio_tools.models import create_model_from_config

SIZE = 512
OWN_STEPS = ("k-dpm-fast", "k-dpm-adaptive")


def case(objective, sampler):
    """In the quick tests each sampler has one objective, in turn where it fits several."""
    fitting = [name for name in OBJECTIVES if sampler in OBJECTIVES[name].samplers]
    chosen = fitting[list(SAMPLERS).index(sampler) % len(fitting)]
    return pytest.param(objective, sampler, marks=[] if objective == chosen else [pytest.mark.slow])


CASES = [case(name, sampler) for name, objective in OBJECTIVES.items() for sampler in objective.samplers]
SHIFT = {"type": "constant", "shift": 3}


def model_of(objective, **diffusion):
    config = configs.text_to_audio()
    config["model"]["diffusion"].update(diffusion, diffusion_objective=objective)
    return filled(create_model_from_config(config))


def filled(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


@pytest.fixture(scope="module")
def models():
    return {name: model_of(name) for name in OBJECTIVES}


@pytest.fixture(scope="module")
def shifted():
    return {name: model_of(name, distribution_shift_options=SHIFT) for name in OBJECTIVES}


def generate(model, sampler, prompts=2, steps=4, cfg_scale=2.0, **options):
    conditioning = [{"prompt": f"a bell {index}"} for index in range(prompts)]
    guidance = 0.6 if SAMPLERS[sampler].cfgpp else cfg_scale
    options = {"conditioning": conditioning, "sample_size": SIZE, "sampler_type": sampler, "seed": 3, **options}
    return generate_diffusion_cond(model, steps, guidance, **options)


@pytest.mark.parametrize("objective, sampler", CASES)
def test_audio_from_every_sampler_is_finite_and_the_same_in_any_batch(models, objective, sampler):
    two = generate(models[objective], sampler)
    assert two.shape == (2, 1, SIZE) and two.isfinite().all() and two.std() > 1e-3
    torch.testing.assert_close(generate(models[objective], sampler, prompts=1), two[:1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sampler", [sampler for sampler in OBJECTIVES["v"].samplers if not SAMPLERS[sampler].cfgpp])
def test_audio_of_a_model_without_conditions_is_finite_and_the_same_in_any_batch(sampler):
    model = filled(create_model_from_config(configs.unconditional()))
    two = generate_diffusion_uncond(model, 4, 2, SIZE, 3, sampler_type=sampler)
    assert two.shape == (2, 1, SIZE) and two.isfinite().all() and two.std() > 1e-3
    torch.testing.assert_close(generate_diffusion_uncond(model, 4, 1, SIZE, 3, sampler_type=sampler), two[:1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("objective, sampler", [case for case in CASES if case.values[1] not in OWN_STEPS])
def test_every_sampler_steps_where_the_models_shift_leads(shifted, objective, sampler):
    def levels(model):
        seen = []
        generate(model, sampler, prompts=1, callback=lambda step: seen.append(step.t))
        return seen

    moved = shifted[objective]
    chosen = find_sampler(sampler, moved.objective)
    frames = -(-SIZE // moved.min_input_length)
    followed = levels(moved)
    assert followed == chosen.schedule(4, length=frames, shift=moved.dist_shift)[:-1].tolist()
    assert followed[1:] != chosen.schedule(4, length=frames)[1:-1].tolist()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sampler", ["euler", "dpmpp-3m-sde", "k-heun"])
def test_a_variation_keeps_the_less_the_more_noise_there_is(models, objective, sampler):
    audio = 0.5 * torch.sin(torch.arange(SIZE) / 3)[None]
    kept = [generate(models[objective], sampler, steps=6, init_audio=(8000, audio), init_noise_level=level) for level in (0.02, 0.3, 0.9)]
    distances = [float((each - audio).square().mean()) for each in kept]
    assert distances == sorted(distances) and distances[0] < 1e-2


def test_ratios_of_noise_to_audio_say_where_a_variation_starts(models):
    """At the ratio 1 of v, half of the path is left."""
    audio = (8000, 0.5 * torch.sin(torch.arange(SIZE) / 3)[None])
    by_ratio = generate(models["v"], "dpmpp-2m", init_audio=audio, sigma_max=1.0)
    by_level = generate(models["v"], "dpmpp-2m", init_audio=audio, init_noise_level=0.5)
    torch.testing.assert_close(by_ratio, by_level, rtol=1e-4, atol=1e-5)


def test_ratios_and_other_options_reach_the_sampler(models):
    plain = generate(models["v"], "dpmpp-3m-sde")
    for options in ({"sigma_min": 0.3}, {"sigma_max": 500}, {"rho": 2.0}, {"eta": 0.2}):
        assert not torch.allclose(generate(models["v"], "dpmpp-3m-sde", **options), plain, atol=1e-4)
    assert torch.equal(generate(models["v"], "dpmpp-3m-sde", sigma_min=0.01, sigma_max=100, rho=1.0, eta=1), plain)


def test_guidance_along_the_unconditional_noise_of_a_flow(models):
    model = models["rectified_flow"]
    assert not torch.allclose(generate(model, "euler-cfgpp"), generate(model, "euler", cfg_scale=0.6), atol=1e-5)
    with pytest.raises(ConfigError, match="'euler-cfgpp' follows the unconditional prediction"):
        generate_diffusion_cond(model, 2, 1.0, conditioning=[{"prompt": "a"}], sample_size=SIZE, sampler_type="euler-cfgpp")
