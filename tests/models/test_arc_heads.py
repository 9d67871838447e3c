"""The heads and the backbone of ARC's discriminator: recorded numbers, sizes, what is refused, what trains."""

import copy
import json
from pathlib import Path
from typing import Annotated

import pytest
import torch
from arc_rule import fill, wave
from configs import text_to_audio

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.discriminators.arc import ARC_HEADS, ArcDiscriminator
from stable_audio_tools.nn.convnext import ConvNeXtBlock, ConvNeXtEncoder, min_length
from stable_audio_tools.nn.teacher import Teacher

RECORDED = json.loads((Path(__file__).parents[1] / "reference" / "arc_heads.json").read_text())


class Section(StrictModel):
    discriminator: Annotated[StrictModel, ARC_HEADS]


def head_config(**keys):
    return ARC_HEADS.select({"dit_hidden_layer": 0, **keys})


SMALL = {
    "conv": {"type": "conv"},
    "convnext": {"type": "convnext", "config": {"channels": 8, "c_mults": [1, 2], "strides": [2, 4]}},
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_scores_keys_and_gradients(name):
    case = RECORDED[name]
    head = head_config(**case["config"]).build(case["width"])
    assert {key: list(value.shape) for key, value in head.state_dict().items()} == case["keys"]
    fill(head)
    features = wave((2, case["width"], case["tokens"]), 2).requires_grad_()
    scores = head(features)
    torch.testing.assert_close(scores.double(), torch.tensor(case["scores"], dtype=torch.double), rtol=1e-5, atol=1e-5)
    (scores * wave(scores.shape, 3)).sum().backward()
    assert float(features.grad.double().norm()) == pytest.approx(case["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_a_head_is_rebuilt_from_its_config_and_weights(name):
    config = head_config(**SMALL[name])
    head, again = config.build(32), ARC_HEADS.select(config.model_dump(mode="json", exclude_unset=True)).build(32)
    again.load_state_dict(head.state_dict())
    features = torch.randn(2, 32, 80)
    assert torch.equal(head(features), again(features)) and torch.equal(head(features), copy.deepcopy(head)(features))
    with torch.device("meta"):
        assert config.build(32)(torch.empty(2, 32, 80)).shape == head(features).shape
    halved = head.bfloat16()(features.bfloat16())
    assert halved.dtype == torch.bfloat16 and halved.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_weight_of_a_head(name):
    head = head_config(**SMALL[name]).build(32)
    head(torch.randn(2, 32, 80)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_convnext_is_the_default():
    assert head_config().type == "convnext"


@pytest.mark.parametrize("glu", [False, True])
def test_a_convnext_block_is_the_identity_at_first_and_learns(glu):
    block, x = ConvNeXtBlock(4, kernel_size=5, mult=2, glu=glu), torch.randn(2, 4, 9)
    assert torch.equal(block(x), x)
    block(x).sum().backward()
    assert block.proj_down.weight_g.grad.abs().sum() > 0


@pytest.mark.parametrize("strides", [(2, 4), (2, 4, 8, 8), (3, 5), (1, 2), (7,)], ids=str)
def test_the_shortest_sequence_of_a_convnext_encoder(strides):
    encoder = ConvNeXtEncoder(2, 1, channels=2, c_mults=(1,) * len(strides), strides=strides, num_blocks=(1,) * len(strides))
    least = min_length(strides)
    assert encoder(torch.randn(1, 2, least)).shape[-1] == 1
    if least > 1:
        with pytest.raises(RuntimeError):
            encoder(torch.randn(1, 2, least - 1))


def test_the_shortest_sequence_of_the_conv_head():
    config = head_config(type="conv")
    head = config.build(32)
    assert head(torch.randn(1, 32, config.min_tokens)).shape == (1, 1, 1)
    with pytest.raises(RuntimeError):
        head(torch.randn(1, 32, config.min_tokens - 1))


def test_soft_clipping_bounds_scores():
    head = head_config(type="conv", config={"soft_clip_scale": 0.25}).build(32)
    assert head(100 * torch.randn(2, 32, 64)).abs().max() <= 0.25


@pytest.mark.parametrize(
    ("keys", "path", "message", "fix"),
    [
        ({"type": "conv", "config": {"channels": 64}}, ("config", "channels"), "unknown key", ""),
        ({"config": {"in_channels": 64}}, ("config", "in_channels"), "unknown key", ""),
        ({"config": {"conv_args": {"kernel_size": 4}}}, ("config", "conv_args", "kernel_size"), "must be odd", "use 3 or 5"),
        ({"config": {"strides": [2, 2]}}, ("config", "strides"), "2 entries for 4 c_mults", "one per stage"),
        ({"config": {"num_blocks": [1]}}, ("config", "num_blocks"), "1 entries for 4 c_mults", "one per stage"),
        ({"type": "conv", "config": {"soft_clip_scale": 0.0}}, ("config", "soft_clip_scale"), "a number above 0", ""),
        ({"contrastive_ids": ["prompt"]}, ("contrastive_ids",), "no effect without contrastive", "set contrastive to true"),
        ({"type": "patch"}, ("type",), 'unknown discriminator head "patch"', "conv"),
    ],
    ids=str,
)
def test_what_a_head_refuses(keys, path, message, fix):
    with pytest.raises(ConfigError) as error:
        validate(Section, {"discriminator": {"dit_hidden_layer": 0, **keys}}, "x")
    (problem,) = error.value.problems
    assert problem.path == ("discriminator", *path)
    assert message in problem.message and fix in problem.fix


def test_the_hidden_layer_must_be_named():
    with pytest.raises(Exception, match="dit_hidden_layer"):
        ARC_HEADS.select({"type": "conv"})


def model(**changes):
    config = text_to_audio()
    config["model"]["diffusion"]["config"] |= {"depth": 3, **changes}
    made = create_model_from_config(config)
    fill(made)
    return made


INPUTS = {"x": wave((2, 16, 64), 1), "t": torch.tensor([0.2, 0.9])}


def test_the_discriminator_judges_the_features_of_its_layer_and_has_no_idle_weights():
    whole = model()
    conditions = whole.conditioner([{"prompt": "a bell"}, {"prompt": "a drum"}], "cpu")
    features = whole(**INPUTS, cond=conditions, exit_layer_ix=1)
    discriminator = ArcDiscriminator(head_config(dit_hidden_layer=1, **SMALL["convnext"]), copy.deepcopy(whole))
    scores = discriminator(INPUTS["x"], INPUTS["t"], conditions)
    torch.testing.assert_close(scores, discriminator.head(features.mT))
    assert len(discriminator.backbone.model.model.transformer.layers) == 2

    own = discriminator.conditions([{"prompt": "a bell"}, {"prompt": "a drum"}], {}, torch.device("cpu"))
    discriminator(INPUTS["x"], INPUTS["t"], own).sum().backward()
    idle = [name for name, p in discriminator.named_parameters() if p.requires_grad and p.grad is None]
    assert not [name for name in idle if "null" not in name]  # what a condition is when dropped, which no discriminator does


def test_inpainting_conditions_are_taken_over_as_they_are():
    discriminator = ArcDiscriminator(head_config(**SMALL["convnext"]), model())
    given = {"inpaint_mask": object(), "inpaint_masked_input": object(), "prompt": object()}
    found = discriminator.conditions([{"prompt": "a bell"}], given, torch.device("cpu"))
    assert found["inpaint_mask"] is given["inpaint_mask"] and found["inpaint_masked_input"] is given["inpaint_masked_input"]
    assert found["prompt"] is not given["prompt"]


class Owner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.own, self.teacher = torch.nn.Linear(2, 2), Teacher(torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout()))


def test_a_teacher_moves_with_its_owner_and_is_in_no_checkpoint():
    owner = Owner()
    owner.teacher.module[0].running_mean.fill_(3)
    assert sorted(owner.state_dict()) == ["own.bias", "own.weight"]
    state = {key: value + 1 for key, value in owner.state_dict().items()}
    owner.load_state_dict(state)  # strict
    assert torch.equal(owner.own.bias, state["own.bias"]) and bool((owner.teacher.module[0].running_mean == 3).all())
    assert owner.double().teacher.module[0].weight.dtype == torch.double
    owner.train()
    assert owner.training and not any(part.training for part in owner.teacher.module.modules())
    assert not any(p.requires_grad for p in owner.teacher.parameters())
