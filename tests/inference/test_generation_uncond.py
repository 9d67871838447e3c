"""Generation without conditions: every network, seeds, variations, and what is refused."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs
from reference_rule import assert_matches, fill, load_reference

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.grids import schedule
from stable_audio_tools.inference.generation import generate_diffusion_uncond
from stable_audio_tools.models import create_model_from_config

SIZE = 2048
NETWORKS = ("adp", "dau1d", "dit")


def filled(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return filled(create_model_from_config(configs.unconditional()))


def generate(model, steps=3, batch_size=2, seed=7, **options):
    return generate_diffusion_uncond(model, steps, batch_size, seed=seed, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_generates_in_the_peers_argument_order(name):
    """The peer's function shifts its arguments by one, and asks the model for an objective that it does not have."""
    model = create_model_from_config(load_reference(f"tiny_uncond_{name}").config)
    audio = generate_diffusion_uncond(model, 2, 3, 512, 5, "cpu", None, 1.0, False)
    assert audio.shape == (3, 2, 512) and audio.dtype == torch.float32 and audio.isfinite().all()
    assert not torch.equal(audio[0], audio[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_recorded_samples_are_met_from_the_recorded_noise(name, monkeypatch):
    reference = load_reference(f"tiny_uncond_{name}")
    model = create_model_from_config(reference.config).eval()
    fill(model, reference)
    monkeypatch.setattr("stable_audio_tools.inference.job.noise_like", lambda x, generators: reference["in.x"])
    made = generate_diffusion_uncond(model, 4, reference["in.x"].shape[0], reference["in.x"].shape[-1], seed=0)
    assert_matches(made, reference["out.v_ddim_eta0_steps4"])


def test_the_length_is_that_of_training_unless_said_otherwise(model):
    assert generate(model).shape == (2, 1, SIZE)
    for size in (1, 16, 17, 1000, 3000):
        assert generate(model, sample_size=size).shape[-1] == size


def test_an_item_depends_on_its_seed_alone(model):
    both = generate(model)
    torch.testing.assert_close(generate(model, batch_size=1), both[:1], rtol=1e-4, atol=1e-5)
    each = generate(model, seed=[7, 9])
    torch.testing.assert_close(each[:1], both[:1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(each[1:], generate(model, batch_size=1, seed=9), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both, generate(model, seed=8))


def test_a_fresh_seed_is_logged_and_repeats_the_clip(model, caplog):
    with caplog.at_level("INFO"):
        first = generate(model, seed=-1)
    assert torch.equal(first, generate(model, seed=int(caplog.messages[-1].removeprefix("seed "))))


def test_a_variation_keeps_the_less_the_more_noise_there_is(model):
    tone = 0.5 * torch.sin(torch.arange(SIZE) / 8000 * 2 * torch.pi * 440)[None]
    far = [float((generate(model, init_audio=(8000, tone), init_noise_level=n) - tone).square().mean()) for n in (0.01, 0.3, 0.9)]
    assert far[0] < 1e-2 and far == sorted(far)


def test_steps_are_those_of_the_one_schedule_and_latents_what_is_decoded(model):
    levels = []
    audio = generate(model, callback=lambda step: levels.append(step.t))
    assert levels == schedule(model.objective, 3, length=SIZE // 16)[:-1].tolist()
    torch.testing.assert_close(model.pretransform.decode(generate(model, return_latents=True)), audio)


@pytest.mark.parametrize("objective, sampler", [("rectified_flow", "dpmpp"), ("rf_denoiser", None), ("v", "v-ddim")])
def test_each_objective_has_its_samplers(objective, sampler):
    config = configs.unconditional()
    config["model"]["config"]["diffusion_objective"] = objective
    assert generate(filled(create_model_from_config(config)), sampler_type=sampler).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    made = generate(filled(create_model_from_config(configs.unconditional())).to(dtype))
    assert made.dtype == torch.float32 and made.isfinite().all()


def test_random_numbers_and_modes_stay_as_they_were(model):
    torch.manual_seed(4)
    state = torch.get_rng_state()
    model.train()
    generate(model, eta=1.0)
    assert torch.equal(state, torch.get_rng_state()) and model.model.training
    model.eval()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"sample_size": 0}, "sample_size must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"seed": [1, 2, 3]}, "3 seeds for 2 items; give one for each"),
        ({"init_noise_level": 0.5}, "init_noise_level is 0.5 but there is no init_audio"),
        ({"init_audio": (8000, torch.zeros(1, 1, 1, 9)), "init_noise_level": 0.5}, r"init_audio has shape \(1, 1, 1, 9\), expected"),
        ({"device": "meta"}, "device is meta but the model is on cpu"),
        ({"sample_rate": 1}, "sample_rate is 1 but the model's is 8000"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_told(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(model, **arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"sampler_type": "dpmpp"}, "sampler 'dpmpp' does not fit the objective 'v'"),
        ({"sampler_type": "v-ddim-cfgpp"}, "follows guidance, and a model without conditions has none"),
        ({"cfg_scale": 3.0}, "has no option cfg_scale"),
    ],
    ids=str,
)
def test_bad_samplers_are_told(model, arguments, message):
    with pytest.raises(ConfigError, match=message):
        generate(model, **arguments)
