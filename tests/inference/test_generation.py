"""Generation: the same clip for the same seed in any batch, nothing outside moved, arguments that fit or are refused."""

import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.grids import schedule
from stable_audio_tools.inference.generation import evaluation_mode, generate_diffusion_cond
from stable_audio_tools.models import create_model_from_config

PROMPTS = [{"prompt": "a bell playing A4, soft"}, {"prompt": "a noise burst, loud"}, {"prompt": "a saw playing C3"}]
SIZE = 2048


def model_of(**diffusion):
    """A tiny model whose every weight is random, so that nothing of it is a no-op."""
    config = configs.text_to_audio()
    config["model"]["diffusion"].update(diffusion)
    return filled(create_model_from_config(config))


def filled(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return model_of()


def generate(model, conditioning=PROMPTS, steps=3, cfg_scale=2.0, sample_size=SIZE, seed=7, **options):
    return generate_diffusion_cond(model, steps, cfg_scale, conditioning=conditioning, sample_size=sample_size, seed=seed, **options)


# what comes out


@pytest.mark.parametrize("objective", ["v", "rectified_flow", "rf_denoiser"])
@pytest.mark.parametrize("prediction", ["velocity", "x0"])
def test_shape_and_precision(objective, prediction):
    audio = generate(model_of(diffusion_objective=objective, prediction=prediction))
    assert audio.shape == (3, 1, SIZE) and audio.dtype == torch.float32 and audio.isfinite().all()
    assert not audio.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("qk_norm", ["none", "l2", "ln"])
@pytest.mark.parametrize("encoder", ["ngram", "transformer"])
@pytest.mark.slow
def test_a_model_in_half_precision_generates(dtype, qk_norm, encoder):
    config = configs.text_to_audio()
    config["model"]["conditioning"]["configs"][0]["config"]["encoder"] = encoder
    config["model"]["diffusion"]["config"]["attn_kwargs"] = {"qk_norm": qk_norm}
    full = filled(create_model_from_config(config))
    options = {"init_audio": (8000, torch.ones(1, SIZE) / 4), "init_noise_level": 0.8, "negative_conditioning": [{"prompt": "loud"}]}
    audio = generate(deepcopy(full).to(dtype), steps=2, scale_phi=0.5, **options)
    assert audio.dtype == torch.float32
    error = audio - generate(full, steps=2, scale_phi=0.5, **options)
    assert error.std() < 0.05 * audio.std()


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
def test_conditions_of_another_precision_are_taken(dtypes):
    given, taking = (model_of().to(dtype) for dtype in dtypes)
    tensors = given.conditioner(PROMPTS, "cpu")
    assert generate(taking, None, conditioning_tensors=tensors).isfinite().all()


@pytest.mark.parametrize("sample_size", [1, 15, 16, 17, 1000])
def test_any_length_is_made_and_cut_to_the_sample(model, sample_size):
    assert generate(model, sample_size=sample_size).shape[-1] == sample_size


def test_latents_are_what_is_decoded(model):
    latents = generate(model, return_latents=True)
    assert latents.shape == (3, 16, SIZE // 16)
    torch.testing.assert_close(model.pretransform.decode(latents), generate(model))


def test_the_same_call_gives_the_same_audio_and_another_seed_another(model):
    assert torch.equal(generate(model), generate(model))
    assert not torch.allclose(generate(model), generate(model, seed=8))


@pytest.mark.parametrize("objective, options", [("rectified_flow", {}), ("rf_denoiser", {}), ("v", {"eta": 1.0})])
def test_an_item_does_not_depend_on_its_batch(objective, options):
    model = model_of(diffusion_objective=objective)
    three = generate(model, **options)
    torch.testing.assert_close(generate(model, PROMPTS[:2], **options), three[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(generate(model, PROMPTS[:1], **options), three[:1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(three[0], three[1])


def test_a_seed_for_each_item_makes_each_as_if_alone(model):
    together = generate(model, seed=[5, 6, 5])
    torch.testing.assert_close(generate(model, PROMPTS[1:2], seed=6), together[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(generate(model, PROMPTS[2:], seed=5), together[2:], rtol=1e-4, atol=1e-5)


def test_a_fresh_seed_is_logged_and_repeats_the_clip(model, caplog):
    with caplog.at_level("INFO"):
        first = generate(model, seed=-1)
    seed = int(caplog.messages[-1].removeprefix("seed "))
    assert torch.equal(first, generate(model, seed=seed))
    assert not torch.equal(first, generate(model, seed=-1))


def test_one_condition_serves_all_items(model):
    repeated = generate(model, PROMPTS[:1] * 3)
    torch.testing.assert_close(generate(model, PROMPTS[:1], batch_size=3), repeated)
    tensors = model.conditioner(PROMPTS[:1], "cpu")
    torch.testing.assert_close(generate(model, None, conditioning_tensors=tensors, batch_size=3), repeated, rtol=1e-4, atol=1e-5)


def test_ready_conditions_do_as_well_as_metadata(model):
    tensors = model.conditioner(PROMPTS, "cpu")
    torch.testing.assert_close(generate(model, None, conditioning_tensors=tensors), generate(model))


def test_guidance_and_the_negative_prompt_act(model):
    plain, guided = generate(model, cfg_scale=1.0), generate(model, cfg_scale=4.0)
    negative = generate(model, cfg_scale=4.0, negative_conditioning=[{"prompt": "silence"}])
    assert not torch.allclose(plain, guided) and not torch.allclose(guided, negative)
    tensors = model.conditioner([{"prompt": "silence"}], "cpu")
    torch.testing.assert_close(generate(model, cfg_scale=4.0, negative_conditioning_tensors=tensors), negative, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(guided, generate(model, cfg_scale=4.0, scale_phi=0.7))
    torch.testing.assert_close(generate(model, cfg_scale=4.0, cfg_interval=(2.0, 3.0)), plain, rtol=1e-4, atol=1e-5)


def test_cfgpp_goes_along_the_unconditional_noise():
    model = model_of(diffusion_objective="v")
    plus = generate(model, cfg_scale=0.6, sampler_type="v-ddim-cfgpp")
    assert not torch.allclose(plus, generate(model, cfg_scale=0.6, sampler_type="v-ddim"))
    unguided = generate(model, cfg_scale=0.0, sampler_type="v-ddim")
    torch.testing.assert_close(generate(model, cfg_scale=0.0, sampler_type="v-ddim-cfgpp"), unguided)


def test_one_schedule_serves_training_length_shift_demos_and_generation(model):
    """Whoever calls, the sampler gets `grids.schedule` of the model's own objective, shift and latent length."""
    shifted = model_of(distribution_shift_options={"type": "constant", "shift": 5})
    for each in (model, shifted):
        seen = []
        generate(each, steps=6, callback=lambda step: seen.append(step.t))  # noqa: B023  called before the loop goes on
        assert seen == schedule(each.objective, 6, length=SIZE // 16, shift=each.dist_shift)[:-1].tolist()
    assert not torch.allclose(generate(model), generate(shifted))


def test_a_demo_is_what_generation_makes():
    from stable_audio_tools.training.demos.config import DiffusionCondDemoConfig
    from stable_audio_tools.training.demos.diffusion import DiffusionCondDemoCallback

    model = model_of(distribution_shift_options={"type": "constant", "shift": 5})
    config = DiffusionCondDemoConfig(demo_steps=3, demo_cfg_scales=(2.0,), demo_cond=tuple(PROMPTS), seed=7)
    demos = DiffusionCondDemoCallback(config, sample_size=SIZE, sample_rate=8000)
    rendered = demos.render(SimpleNamespace(sampling_model=model, device=torch.device("cpu")))
    assert torch.equal(torch.stack([demo.audio for demo in rendered]), generate(model))


# variations


def clip(seconds=0.2, rate=8000, channels=1):
    t = torch.arange(int(seconds * rate)) / rate
    return 0.5 * torch.sin(2 * torch.pi * 440 * t).expand(channels, -1)


@pytest.mark.parametrize("objective", ["v", "rectified_flow"])
def test_a_variation_keeps_the_less_the_more_noise_there_is(objective):
    model = model_of(diffusion_objective=objective)
    original = torch.nn.functional.pad(clip(), (0, SIZE - 1600))
    distances = [
        float((generate(model, init_audio=(8000, clip()), init_noise_level=n) - original).square().mean()) for n in (0.01, 0.3, 0.9)
    ]
    assert distances[0] < 1e-2 and distances == sorted(distances)
    torch.testing.assert_close(generate(model, init_audio=(8000, clip()), init_noise_level=1.0), generate(model), rtol=0, atol=1e-4)


def test_audio_to_vary_is_resampled_mixed_cut_and_padded(model):
    def vary(audio, rate):
        return generate(model, init_audio=(rate, audio), init_noise_level=0.2)

    expected = vary(clip(), 8000)
    torch.testing.assert_close(vary(clip(channels=2), 8000), expected)
    assert (vary(clip(rate=16000), 16000) - expected).abs().mean() < 0.02
    assert vary(clip(seconds=3), 8000).shape == (3, 1, SIZE)
    each = vary(torch.stack([clip(), clip() * 0.5, clip() * 0]), 8000)
    torch.testing.assert_close(each[0], expected[0])
    assert each[2].abs().mean() < each[0].abs().mean()


# what stays as it was


@pytest.fixture(scope="module")
def drawing_model():
    """Its encoder draws its latents at random."""
    config = configs.text_to_audio()
    config["audio_channels"], config["model"]["io_channels"], config["model"]["diffusion"]["config"]["io_channels"] = 2, 4, 4
    config["model"]["pretransform"] = {"type": "autoencoder", "config": configs.autoencoder()["model"]}
    return create_model_from_config(config).eval()


def test_the_global_generator_neither_moves_nor_matters(drawing_model):
    states, clips = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(torch.get_rng_state())
        clips.append(generate(drawing_model, init_audio=(8000, clip()), init_noise_level=0.5))
        assert torch.equal(states[-1], torch.get_rng_state())
    assert torch.equal(*clips) and clips[0].shape == (3, 2, SIZE)
    with pytest.raises(ConfigError):
        generate(drawing_model, [{}])
    assert torch.equal(states[-1], torch.get_rng_state())


def test_what_an_encoder_draws_does_not_depend_on_the_batch(drawing_model):
    options = {"init_audio": (8000, clip()), "init_noise_level": 0.1}
    torch.testing.assert_close(generate(drawing_model, **options)[:1], generate(drawing_model, PROMPTS[:1], **options))


def test_every_module_keeps_its_own_mode(model):
    model.train()
    model.conditioner.eval()
    modes = [module.training for module in model.modules()]
    try:
        generate(model)
        assert modes == [module.training for module in model.modules()]
        with pytest.raises(ZeroDivisionError), evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            raise ZeroDivisionError
        assert modes == [module.training for module in model.modules()]
    finally:
        model.eval()


def test_metadata_are_only_read(model):
    metadata = [dict(item) for item in PROMPTS]
    generate(model, metadata)
    assert metadata == PROMPTS


# what is refused


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"conditioning": None}, "give either conditioning or conditioning_tensors"),
        ({"conditioning_tensors": {}}, "give either conditioning or conditioning_tensors"),
        ({"conditioning": []}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2}, "conditioning has 3 entries for a batch of 2; give one for each item, or one for all"),
        ({"negative_conditioning": PROMPTS[:2]}, "negative_conditioning has 2 entries for a batch of 3"),
        (
            {"negative_conditioning": PROMPTS[:1], "negative_conditioning_tensors": {}},
            "give either negative_conditioning or negative_conditioning_tensors, not both",
        ),
        ({"seed": [1, 2]}, "2 seeds for 3 items; give one for each"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"sample_size": 0}, "sample_size must be at least 1, got 0"),
        ({"sample_rate": 44100}, "sample_rate is 44100 but the model's is 8000; leave it out, and resample the result"),
        ({"device": "meta"}, r"device is meta but the model is on cpu; move it with model.to\('meta'\)"),
        ({"init_noise_level": 0.5}, "init_noise_level is 0.5 but there is no init_audio to keep anything of"),
        ({"init_audio": (8000, clip()), "init_noise_level": 0.0}, "must be above 0 and at most 1, got 0.0"),
        (
            {"init_audio": (8000, torch.zeros(2, 1, 9))},
            r"init_audio has shape \(2, 1, 9\), expected \(C, T\), or \(B, C, T\) with B = 1 or 3",
        ),
        ({"init_audio": (8000, torch.zeros(1, 1, 1, 9))}, r"init_audio has shape \(1, 1, 1, 9\), expected"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_told(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(model, **arguments)


def test_tensors_of_another_batch_are_told(model):
    tensors = model.conditioner(PROMPTS[:2], "cpu")
    with pytest.raises(ValueError, match=r"conditioning_tensors\['prompt'\] has 2 items for a batch of 3"):
        generate(model, None, conditioning_tensors=tensors, batch_size=3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"sampler_type": "v-ddim"}, "sampler 'v-ddim' does not fit the objective 'rectified_flow'"),
        ({"sampler_type": "dpmpp-4m"}, r"unknown sampler 'dpmpp-4m'(.|\n)*known: euler, heun, rk4, dpmpp, pingpong"),
        ({"sigma_min": 0.3, "sigma_max": 500}, "sampler 'euler' has no option sigma_min, sigma_max"),
        ({"conditioning": [{"promt": "x"}]}, "prompt"),
    ],
)
def test_bad_samplers_and_metadata_are_told(model, arguments, message):
    with pytest.raises(ConfigError, match=message):
        generate(model, **arguments)


def test_cfgpp_needs_guidance():
    with pytest.raises(ValueError, match="'v-ddim-cfgpp' follows the unconditional prediction, which cfg_scale 1 leaves out"):
        generate(model_of(diffusion_objective="v"), cfg_scale=1.0, sampler_type="v-ddim-cfgpp")
