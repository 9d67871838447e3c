"""Conditional DiTs against recorded numbers: adaLN with patches, memory and conformer; prefix with grouped heads; inpainting inputs."""

from functools import cache

import pytest
import torch
from reference_rule import Reference, assert_matches, assert_same_layout, fill, load_reference

from stable_audio_tools.diffusion.guidance import guided
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.latent_diffusion import ConditionedDiffusion

NAMES = ("tiny_cond_dit_rf_adaln", "tiny_cond_dit_v_prepend", "tiny_inpaint_dit_rf")
METADATA = (
    {"pitch": 3, "genre": "jazz", "seconds_start": 0, "seconds_total": 30},
    {"pitch": 99, "genre": "unknown", "seconds_start": 12.5, "seconds_total": 600},
)
NEGATIVE = {"pitch": 7, "genre": "rock", "seconds_total": 5}


class Case:
    """A recorded model with the recorded weights, and its conditions."""

    def __init__(self, name: str):
        self.reference: Reference = load_reference(name)
        self.model: ConditionedDiffusion = create_model_from_config(self.reference.config).eval()
        self.x, self.t = self.reference["in.x"], self.reference["in.t"]
        assert_same_layout(self.model, self.reference.table)
        fill(self.model, self.reference)

    def conditions(self, **changes: object) -> dict[str, Condition]:
        made = self.model.conditioner([{**item, **changes} for item in METADATA], "cpu")
        for name in ("inpaint_mask", "inpaint_masked_input"):
            if f"in.{name}" in self.reference.tensors:
                made[name] = Condition(self.reference[f"in.{name}"], None)
        return made

    @torch.no_grad()
    def __call__(self, **options: object) -> torch.Tensor:
        return self.model(self.x, self.t, self.conditions(), **options)


@cache
def case(name: str) -> Case:
    return Case(name)


@pytest.fixture(params=NAMES)
def recorded(request):
    return case(request.param)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("cfg1", {}),
        ("cfg3", {"cfg_scale": 3.0}),
        ("cfg3", {"cfg_scale": 3.0, "batch_cfg": False}),
        ("cfg3_scale_phi0.7", {"cfg_scale": 3.0, "scale_phi": 0.7}),
        ("exit_layer0", {"exit_layer_ix": 0}),
    ],
)
def test_outputs(recorded, key, options):
    assert_matches(recorded(**options), recorded.reference[f"out.{key}"])


def test_conditions_and_what_the_denoiser_gets(recorded):
    conditions = recorded.conditions()
    made = {f"out.inputs.{name}": value for name, value in recorded.model.get_conditioning_inputs(conditions).items() if value is not None}
    for name, condition in conditions.items():
        made |= {f"out.cond.{name}": condition.tensor, f"out.cond_mask.{name}": condition.mask}
    wanted = {key: value for key, value in recorded.reference.tensors.items() if key.startswith(("out.inputs.", "out.cond"))}
    assert wanted
    for key, value in wanted.items():
        assert_matches(made[key].float(), value)


def test_a_negative_prompt(recorded):
    """Recorded where a negative reaches cross-attention alone, and is dropped on the other routes; here it takes all of them."""
    model, x, t = recorded.model, recorded.x, recorded.t
    cond, negative = recorded.conditions(), recorded.conditions(**NEGATIVE)
    inputs, of_negative = model.get_conditioning_inputs(cond), model.get_conditioning_inputs(negative)
    tokens = {name: of_negative[name] for name in ("cross_attn_cond", "cross_attn_mask", "cross_attn_dropped")}
    with torch.no_grad():
        there = model.model(x, t, **{**model.routes.unconditional(cond, inputs), **tokens})
        here = model.model(x, t, **of_negative)
    sigma = model.objective.alpha_sigma(t)[1]
    assert_matches(guided(recorded(), there, sigma, scale=3.0), recorded.reference["out.cfg3_negative"])
    assert_matches(recorded(cfg_scale=3.0, negative_cond=negative), guided(recorded(), here, sigma, scale=3.0))
    assert (here - there).abs().max() > 1e-3


def test_hidden_states(recorded):
    info: dict = {}
    recorded(info=info)
    recorded_keys = [key for key in recorded.reference.tensors if key.startswith("out.hidden")]
    for key in recorded_keys:
        assert_matches(info["hidden_states"][int(key.removeprefix("out.hidden"))], recorded.reference[key])


def test_guidance_outside_its_interval_is_off(recorded):
    """Recorded with an interval that holds neither item of the batch, as the recording decides by the first alone."""
    outside = recorded(cfg_scale=3.0, cfg_interval=(0.0, 0.2))
    assert_matches(outside, recorded.reference["out.cfg3_interval_0_0.2"])
    assert_matches(outside, recorded.reference["out.cfg1"])
