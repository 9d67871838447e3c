"""ADP U-Nets against recorded numbers: recorded models, and variants with patches, context channels, padding and spectrograms."""

from functools import cache

import pytest
import torch
from reference_rule import Reference, assert_matches, assert_same_layout, fill, load_reference
from torch import nn

from stable_audio_tools.diffusion.grids import schedule
from stable_audio_tools.diffusion.samplers import Prediction, find_sampler
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.factory import create_model_from_config

METADATA = (
    {"pitch": 3, "seconds_start": 0, "seconds_total": 30},
    {"pitch": 99, "seconds_start": 12, "seconds_total": 600},
)


@cache
def recorded(name: str) -> tuple[nn.Module, Reference]:
    reference = load_reference(name)
    model = create_model_from_config(reference.config).eval()
    assert_same_layout(model, reference.table)
    fill(model, reference)
    return model, reference


def conditions(reference: Reference, *, negative: bool = False) -> dict[str, Condition]:
    """The recorded conditions; with `negative`, those of another prompt, where there are some."""
    found = {}
    for key, value in reference.tensors.items():
        if key.startswith("in.cond."):
            name = key.removeprefix("in.cond.")
            found[name] = Condition(value, reference[f"in.mask.{name}"])
    for name in found if negative else ():
        if f"in.negative.{name}" in reference.tensors:
            found[name] = Condition(reference[f"in.negative.{name}"], reference[f"in.negative_mask.{name}"])
    return found


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("cfg1", {}),
        ("cfg3", {"cfg_scale": 3.0}),
        ("cfg3", {"cfg_scale": 3.0, "batch_cfg": False}),
        ("cfg3_scale_phi0.7", {"cfg_scale": 3.0, "scale_phi": 0.7, "rescale_cfg": True}),
    ],
)
@torch.no_grad()
def test_guidance_with_the_timestep_as_a_token(key, options):
    model, reference = recorded("tiny_cond_adp_cfg")
    got = model(reference["in.x"], reference["in.t"], model.conditioner(METADATA, "cpu"), **options)
    assert_matches(got, reference[f"out.{key}"])


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("cfg1", {}),
        ("cfg3", {"cfg_scale": 3.0}),
        ("cfg3", {"cfg_scale": 3.0, "batch_cfg": False}),
        ("cfg3_rescaled", {"cfg_scale": 3.0, "rescale_cfg": True}),
        ("dropped", {"cfg_dropout_prob": 1.0}),
    ],
)
@torch.no_grad()
def test_patches_padding_and_context_of_a_deeper_level(key, options):
    model, reference = recorded("adp_cfg_patched")
    assert_matches(model(reference["in.x"], reference["in.t"], conditions(reference), **options), reference[f"out.{key}"])


@pytest.mark.parametrize("batch_cfg", [True, False])
@torch.no_grad()
def test_a_negative_prompt_has_the_learned_null_in_its_padding(batch_cfg):
    model, reference = recorded("adp_cfg_patched")
    options = {"cfg_scale": 3.0, "negative_cond": conditions(reference, negative=True), "batch_cfg": batch_cfg}
    got = model(reference["in.x"], reference["in.t"], conditions(reference), **options)
    assert_matches(got, reference["out.cfg3_negative"])


@torch.no_grad()
def test_global_and_stretched_input_conditions_without_a_timestep():
    model, reference = recorded("adp_cond")
    assert_matches(model(reference["in.x"], reference["in.t"], conditions(reference)), reference["out.cfg1"])


@pytest.mark.parametrize("name", ["tiny_uncond_adp", "adp_stft", "adp_stft_complex"])
@torch.no_grad()
def test_without_conditions(name):
    model, reference = recorded(name)
    assert_matches(model(reference["in.x"], reference["in.t"]), reference["out.model"])


def sampled(model: nn.Module, x: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
    """Four steps of v-ddim from noise x; `args` and `options` are the model's."""

    def field(x, t):
        output = model(x, t, *args, **options)
        return Prediction(output, model.objective.denoised(x, output, t), model.objective.noise(x, output, t))

    return find_sampler("v-ddim", model.objective, {}).sample(field, x, schedule(model.objective, 4, length=x.shape[-1]))


@torch.no_grad()
def test_sampling_without_conditions():
    model, reference = recorded("tiny_uncond_adp")
    assert_matches(sampled(model, reference["in.x"]), reference["out.v_ddim_eta0_steps4"])


@torch.no_grad()
def test_generation_rescales_by_the_networks_own_share():
    model, reference = recorded("tiny_cond_adp_cfg")
    noise = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(42))  # as it was recorded
    got = sampled(model, noise, model.conditioner(METADATA, "cpu"), cfg_scale=3.0, rescale_cfg=True)
    assert_matches(got, reference["seeded.generate_v-ddim_steps4_seed42_cfg3"])


@torch.no_grad()
def test_as_the_decoder_of_a_diffusion_autoencoder():
    model, reference = recorded("tiny_diffae_adp")
    got = model.diffusion(reference["in.audio"], reference["in.t"], input_concat_cond=reference["in.cond_latents_upsampled"])
    assert_matches(got, reference["out.diffusion"])
