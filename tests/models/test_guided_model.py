"""Guidance asks the network as often as it must, in one batch or two, and reaches generation through its arguments."""

import pytest
import torch
from configs import text_to_audio

from stable_audio_tools.inference.generation import generate_diffusion_cond
from stable_audio_tools.models.factory import create_model_from_config

PROMPTS = [{"prompt": "a bell"}, {"prompt": "a saw wave"}]
NEGATIVE = [{"prompt": "noise"}]
SHAPED = {"apg_scale": 0.7, "cfg_norm_threshold": 2.0, "apg_momentum": -0.5, "scale_phi": 0.3}


@pytest.fixture(scope="module", params=["rectified_flow", "v"])
def model(request):
    config = text_to_audio()
    config["model"]["diffusion"]["diffusion_objective"] = request.param
    built = create_model_from_config(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return built


def generate(model, cfg_scale=3.0, **options):
    return generate_diffusion_cond(model, 4, cfg_scale, conditioning=PROMPTS, sample_size=512, seed=1, return_latents=True, **options)


def batches(model, **options):
    """The batch size of every call of the network."""
    sizes = []
    hook = model.model.register_forward_hook(lambda module, args, output: sizes.append(output.shape[0]))
    try:
        generate(model, **options)
    finally:
        hook.remove()
    return sizes


def test_the_network_is_asked_no_more_than_it_must(model):
    assert batches(model) == [4] * 4
    assert batches(model, batch_cfg=False) == [2] * 8
    assert batches(model, cfg_scale=1.0) == [2] * 4
    assert batches(model, cfg_scale=1.0, negative_conditioning=NEGATIVE, **SHAPED) == [2] * 4
    assert batches(model, cfg_interval=(2.0, 3.0)) == [2] * 4


def test_guidance_is_asked_for_only_in_the_steps_inside_its_interval(model):
    levels = []
    generate(model, cfg_scale=1.0, callback=lambda step: levels.append(torch.tensor(step.t)))
    inside = [0.3 <= float(model.objective.alpha_sigma(t)[1]) <= 0.9 for t in levels]
    assert any(inside) and not all(inside)
    assert batches(model, cfg_interval=(0.3, 0.9)) == [4 if each else 2 for each in inside]


@pytest.mark.parametrize("negative", [None, NEGATIVE])
@pytest.mark.parametrize("shaping", [{}, SHAPED], ids=["plain", "shaped"])
def test_one_batch_or_two_is_the_same(model, negative, shaping):
    one, two = (generate(model, batch_cfg=batched, negative_conditioning=negative, **shaping) for batched in (True, False))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("argument", [{"apg_scale": 1.0}, {"cfg_norm_threshold": 0.1}, {"apg_momentum": -0.5}, {"scale_phi": 0.5}], ids=str)
def test_each_argument_acts_and_a_clip_does_not_depend_on_its_batch(model, argument):
    both = generate(model, **argument)
    assert not torch.allclose(both, generate(model), rtol=1e-3, atol=1e-3)
    alone = generate_diffusion_cond(model, 4, 3.0, conditioning=PROMPTS[:1], sample_size=512, seed=1, return_latents=True, **argument)
    torch.testing.assert_close(alone, both[:1], rtol=1e-4, atol=1e-5)


def test_momentum_starts_at_rest_in_every_run(model):
    assert torch.equal(generate(model, apg_momentum=-0.5), generate(model, apg_momentum=-0.5))
