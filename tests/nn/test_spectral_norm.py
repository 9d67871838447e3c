import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm

from stable_audio_tools.nn.spectral_norm import SNConv1d, SNConvTranspose1d

PAIRS = [(SNConv1d, nn.Conv1d), (SNConvTranspose1d, nn.ConvTranspose1d)]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_keys_numbers_gradients_and_power_iteration_are_those_of_torchs_hook(ours, theirs):
    torch.manual_seed(0)
    mine, other = ours(3, 5, 4, 2), spectral_norm(theirs(3, 5, 4, 2), dim=1 if theirs is nn.ConvTranspose1d else 0)
    mine.load_state_dict(other.state_dict())
    for mode in (True, True, False):
        x = torch.randn(2, 3, 9)
        mine.train(mode), other.train(mode)
        mine(x).square().sum().backward()
        other(x).square().sum().backward()
        torch.testing.assert_close(mine(x), other(x))
        torch.testing.assert_close(mine.weight_orig.grad, other.weight_orig.grad)
        torch.testing.assert_close(mine.state_dict(), other.state_dict())


@pytest.mark.parametrize("kind", [SNConv1d, SNConvTranspose1d])
def test_training_passes_bring_the_largest_singular_value_to_one(kind):
    torch.manual_seed(0)
    layer = kind(3, 5, 4)
    for _ in range(100):
        layer(torch.randn(1, 3, 9))
    weight = layer.eval().effective_weight().detach().movedim(kind.output_axis, 0).flatten(1)
    assert torch.linalg.svdvals(weight)[0].item() == pytest.approx(1, abs=1e-3)


def test_two_passes_before_the_backward_pass_and_a_copy_after_it():
    layer = SNConv1d(3, 5, 4)
    (layer(torch.randn(1, 3, 9)) - layer(torch.randn(1, 3, 9))).square().sum().backward()
    twin = copy.deepcopy(layer).eval()
    x = torch.randn(1, 3, 9)
    assert torch.equal(twin(x), layer.eval()(x))
