"""A pretrained model that is given further conditions says what it said before, whatever they are."""

import pytest
import torch
from configs import text_to_audio

from stable_audio_tools.models.checkpoints import CheckpointError, LoadedWeights, load_into
from stable_audio_tools.models.factory import create_model_from_config

PITCH = {"id": "pitch", "type": "number", "config": {"min_val": 0, "max_val": 127}}


def config(*, pitch: bool = False, first: bool = False, patch_size: int = 1):
    """The tiny model with its prompt on the global and the input-concat route; with `pitch`, a second condition on both."""
    made = text_to_audio()
    diffusion = made["model"]["diffusion"]
    ids = ["prompt"]
    if pitch:
        made["model"]["conditioning"]["configs"].append(PITCH)
        ids = ["pitch", "prompt"] if first else ["prompt", "pitch"]
    diffusion |= {"global_cond_ids": ids, "input_concat_ids": ids}
    diffusion["config"] |= {"global_cond_dim": 16 * len(ids), "input_concat_dim": 16 * len(ids), "patch_size": patch_size}
    return made


def trained(**options):
    """A model whose every weight is random, since fresh ones hide most of it behind zeros."""
    model = create_model_from_config(config(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def weights_of(model, model_config=None):
    return LoadedWeights(model.state_dict(), "model", {}, config=model_config, source="m.safetensors")


@torch.no_grad()
def output(model, **metadata):
    x = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    items = [{"prompt": "a bell", **metadata}, {"prompt": "a saw", **metadata}]
    return model(x, torch.tensor([0.2, 0.9]), model.conditioner(items, "cpu"))


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_new_condition_changes_nothing_until_it_is_trained(patch_size):
    before = trained(patch_size=patch_size)
    after = create_model_from_config(config(pitch=True, patch_size=patch_size)).eval()
    report = load_into(after, weights_of(before, config(patch_size=patch_size)), allow_partial=True)
    torch.testing.assert_close(output(after, pitch=60), output(before))
    torch.testing.assert_close(output(after, pitch=3), output(before))
    assert [text.split(":")[0] for text in report.widened] == [
        "model.model.to_global_embed.0.weight",
        "model.model.preprocess_conv.weight",
        "model.model.transformer.project_in.weight",
    ]
    assert "widened     model.model.to_global_embed.0.weight: file (32, 16), model (32, 32) (+2)" in str(report)
    assert all(key.startswith("conditioner.conditioners.pitch.") for key in report.missing)


def test_the_new_columns_learn():
    after = create_model_from_config(config(pitch=True)).eval()
    load_into(after, weights_of(trained(), config()), allow_partial=True)
    items = [{"prompt": "a bell", "pitch": 60}]
    after(torch.randn(1, 16, 8), torch.tensor([0.5]), after.conditioner(items, "cpu")).square().sum().backward()
    assert after.model.model.to_global_embed[0].weight.grad[:, 16:].abs().sum() > 0
    assert after.model.model.transformer.project_in.weight.grad[:, 32:].abs().sum() > 0


def test_without_allow_partial_it_is_refused():
    with pytest.raises(CheckpointError, match="allow-partial"):
        load_into(create_model_from_config(config(pitch=True)), weights_of(trained()))


def test_a_condition_put_in_front_of_the_trained_ones_is_refused():
    after = create_model_from_config(config(pitch=True, first=True))
    with pytest.raises(CheckpointError, match="put the new conditions behind the trained ones in global_cond_ids"):
        load_into(after, weights_of(trained(), config()), allow_partial=True)


def test_a_narrower_model_keeps_its_own_weights():
    after = create_model_from_config(config())
    fresh = after.model.model.to_global_embed[0].weight.clone()
    report = load_into(after, weights_of(trained(pitch=True)), allow_partial=True)
    assert not report.widened and len(report.mismatched) == 3
    assert torch.equal(after.model.model.to_global_embed[0].weight, fresh)
