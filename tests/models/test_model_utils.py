"""The peer's helper names do what they did there, and say what they did not do."""

import copy
import logging

import pytest
import torch
from torch import nn

from stable_audio_tools.models.utils import copy_state_dict, load_ckpt_state_dict, remove_weight_norm_from_model
from stable_audio_tools.nn.conv import WNConv1d


def test_copy_state_dict_copies_what_matches_and_warns_of_the_rest(caplog):
    model, source = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 1))
    with caplog.at_level(logging.WARNING):
        report = copy_state_dict(model, source.state_dict())
    assert torch.equal(model[0].weight, source[0].weight) and torch.equal(model[1].bias, source[1].bias)
    assert report.mismatched == ("1.weight: file (1, 4), model (1, 3)",)
    assert "loaded 3 tensors; 1 of another shape" in caplog.text


def test_copy_state_dict_is_silent_when_everything_fits(caplog):
    assert copy_state_dict(nn.Linear(2, 2), nn.Linear(2, 2).state_dict()).complete
    assert not caplog.records


def test_load_ckpt_state_dict_gives_the_models_own_keys(tmp_path):
    state = {f"autoencoder.{key}": value for key, value in nn.Linear(2, 2).state_dict().items()}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.1"}, tmp_path / "step.ckpt")
    assert load_ckpt_state_dict(tmp_path / "step.ckpt").keys() == {"weight", "bias"}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "build",
    [
        lambda: WNConv1d(2, 3, 3),
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 3)),
        lambda: nn.utils.weight_norm(nn.Conv1d(2, 3, 3)),
        lambda: nn.Conv1d(2, 3, 3),
    ],
    ids=["own", "parametrized", "hooked", "plain"],
)
def test_weight_norm_is_folded_whatever_its_form(build):
    model, x = nn.Sequential(build(), nn.ReLU()), torch.randn(1, 2, 7)
    expected = model(x)
    assert remove_weight_norm_from_model(model) is model
    assert set(model.state_dict()) == {"0.weight", "0.bias"}
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(copy.deepcopy(remove_weight_norm_from_model(model))(x), expected)
