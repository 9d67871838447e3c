"""Unconditional diffusion models: the recorded DiT, what generation asks of a model, and every size that does not fit."""

import pytest
import torch
from reference_rule import assert_matches, assert_same_layout, fill, load_reference

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.grids import schedule
from stable_audio_tools.diffusion.samplers import make_field
from stable_audio_tools.diffusion.samplers.ddim import ddim
from stable_audio_tools.models.factory import create_model_from_config, parse_model_config

DIT = {"type": "dit", "config": {"in_channels": 2, "embed_dim": 32, "depth": 1, "num_heads": 1, "patch_size": 4}}
DAU = {"type": "DAU1d", "config": {"depth": 3, "n_attn_layers": 1, "channels": [32, 32, 32], "strides": [2, 2]}}
PATCHED = {"type": "patched", "config": {"channels": 1, "patch_size": 2}}


def config(model=DIT, **changes):
    return {"model_type": "diffusion_uncond", "sample_rate": 8000, "sample_size": 512, "model": model, **changes}


def dit(**options):
    return {**DIT, "config": {**DIT["config"], **options}}


def test_recorded_numbers():
    reference = load_reference("tiny_uncond_dit")
    model = create_model_from_config(reference.config).eval()
    assert_same_layout(model, reference.table)
    fill(model, reference)
    with torch.no_grad():
        assert_matches(model(reference["in.x"], reference["in.t"]), reference["out.model"])
        levels = schedule(model.objective, 4, length=512)
        sampled = ddim(make_field(model, model.objective), reference["in.x"], levels, objective=model.objective)
    assert_matches(sampled, reference["out.v_ddim_eta0_steps4"])


def test_what_generation_asks_of_a_model():
    model = create_model_from_config(config({**dit(), "pretransform": PATCHED}, audio_channels=1))
    assert (model.diffusion_objective, model.dist_shift, model.io_channels) == ("v", None, 2)
    assert (model.sample_rate, model.sample_size, model.min_input_length) == (8000, 512, 8)
    latents = model.pretransform.encode(torch.randn(1, 1, 512))
    assert model(latents, torch.tensor([0.5])).shape == latents.shape
    assert create_model_from_config(config(DAU)).min_input_length == 4


def test_all_weights_of_a_dit_start_halved():
    """Gains, which start at 1, and learned frequencies, whose deviation is 1."""
    model = create_model_from_config(config()).model.model
    assert model.transformer.layers[0].pre_norm.gamma.eq(0.5).all()
    assert 0.4 < model.timestep_features.weight.std() < 0.6


def test_a_dit_may_follow_another_objective():
    assert create_model_from_config(config(dit(diffusion_objective="rectified_flow"))).diffusion_objective == "rectified_flow"


def test_every_weight_learns():
    model = create_model_from_config(config())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model(torch.randn(2, 2, 512), torch.tensor([0.1, 0.7])).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum()] == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (config(sample_size=510), ["sample_size", "510 is no multiple of 4 (patch_size 4)", "nearest: 508 or 512"]),
        (config(DAU, sample_size=510), ["510 is no multiple of 4 (product of strides 4)", "nearest: 508 or 512"]),
        (config(DAU, sample_size=8), ["sample_size 8 is shorter than the model can take, 12", "nearest: 12"]),
        (config(DAU, sample_size=9), ["sample_size 9 is no multiple of 4", "nearest: 12"]),
        (
            config({**dit(in_channels=4), "pretransform": PATCHED}, audio_channels=1),
            ["model.config.in_channels", "config.in_channels is 4, but the pretransform gives 2", "set it to 2"],
        ),
        (config({**dit(), "pretransform": PATCHED}, audio_channels=2), ["audio_channels is 2", "the pretransform's io_channels 1"]),
        (
            config({**dit(), "pretransform": PATCHED}, audio_channels=1, sample_size=516),
            ["sample_size 516 is no multiple of 8 (the pretransform's downsampling ratio 2 x patch_size 4)"],
        ),
        (config(dit(in_channels=1)), ["audio_channels is 2, but the model has in_channels 1", "set audio_channels to 1"]),
        (
            config({"type": "dit", "config": {"embed_dim": 32, "num_heads": 1}}),
            ["model.config", 'missing key "in_channels"', "a whole number"],
        ),
        (config(dit(in_chanels=2)), ['unknown key "in_chanels"', "in_channels"]),
        (config(dit(cond_token_dim=8)), ["model.config.cond_token_dim", "a diffusion_uncond model has no such conditions", "set it to 0"]),
        (config(dit(global_cond_dim=8)), ["model.config.global_cond_dim"]),
        (config(dit(prepend_cond_dim=8)), ["model.config.prepend_cond_dim"]),
        (config(dit(input_concat_dim=8)), ["model.config.input_concat_dim", "has nothing to put beside its input"]),
        (config(dit(diffusion_objective="flow")), ["model.config.diffusion_objective", '"v", "rectified_flow", "rf_denoiser"']),
        (config(dit(embed_dim=33, num_heads=2)), ["model.config.embed_dim", "no multiple of num_heads 2"]),
        (config({"type": "DAU1D"}), ['unknown unconditional denoiser "DAU1D"', 'did you mean "DAU1d"?']),
        (config({"config": DIT["config"]}), ["model", 'missing key "type"']),
        (config({"diffusion": DIT}), ["model.diffusion", 'stands in "model" itself', 'move its "type" and "config" up into "model"']),
    ],
)
def test_what_does_not_fit_is_refused_with_place_numbers_and_fix(data, said):
    with pytest.raises(ConfigError) as error:
        parse_model_config(data)
    assert [part for part in said if part not in str(error.value)] == []


def test_more_channels_than_audio_has_are_latents():
    assert parse_model_config(config(dit(in_channels=64))).model.io_channels == 64
