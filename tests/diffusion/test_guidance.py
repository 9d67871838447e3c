"""Guidance as arithmetic on predictions."""

import pytest
import torch

from stable_audio_tools.diffusion.guidance import guide, guided, in_interval, rescale, where_items

SIGMA = torch.tensor([0.1, 0.5, 0.9])


def predictions():
    return torch.randn(3, 4, 8), torch.randn(3, 4, 8)


def test_scale_one_is_the_conditional_and_zero_the_unconditional():
    conditional, unconditional = predictions()
    torch.testing.assert_close(guide(conditional, unconditional, 1.0), conditional)
    torch.testing.assert_close(guide(conditional, unconditional, 0.0), unconditional)


def test_full_rescaling_restores_the_deviation_and_none_changes_nothing():
    conditional, unconditional = predictions()
    out = guide(conditional, unconditional, 5.0)
    torch.testing.assert_close(rescale(out, conditional, 1.0).std(dim=1), conditional.std(dim=1))
    torch.testing.assert_close(rescale(out, conditional, 0.0), out)


@pytest.mark.parametrize(("interval", "inside"), [((0, 1), [1, 1, 1]), ((0.5, 0.9), [0, 1, 1]), ((0.2, 0.4), [0, 0, 0])])
def test_the_interval_is_closed_and_decided_for_each_item(interval, inside):
    conditional, unconditional = predictions()
    assert in_interval(SIGMA, interval).tolist() == [bool(item) for item in inside]
    out = guided(conditional, unconditional, SIGMA, scale=3.0, phi=0.3, interval=interval)
    everywhere = guided(conditional, unconditional, SIGMA, scale=3.0, phi=0.3)
    torch.testing.assert_close(out, torch.stack([(everywhere if on else conditional)[i] for i, on in enumerate(inside)]))


def test_one_null_serves_a_batch():
    kept = torch.randn(3, 5)
    out = where_items(torch.tensor([True, False, True]), torch.zeros(1, 5), kept)
    torch.testing.assert_close(out, kept * torch.tensor([0.0, 1.0, 0.0])[:, None])
