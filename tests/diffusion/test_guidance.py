"""Guidance as arithmetic on predictions."""

import pytest
import torch

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.diffusion.guidance import EVERYWHERE, Guidance, Momentum, guide, guided, in_interval, rescale, shaped, where_items
from stable_audio_tools.diffusion.objectives import OBJECTIVES

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


def test_rescaling_is_finite_for_one_channel_and_for_a_network_that_says_nothing_yet():
    conditional, unconditional = torch.randn(2, 3, 1, 8)
    out = guide(conditional, unconditional, 5.0)
    torch.testing.assert_close(rescale(out, conditional, 1.0).std(dim=2), conditional.std(dim=2))
    nothing = torch.zeros(3, 4, 8)
    assert torch.equal(rescale(nothing, nothing, 0.7), nothing)


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


# adaptive projected guidance, arXiv:2410.02416, as the paper writes it: on predictions of clean data


def clean_data(objective):
    """Noisy data, levels, both velocities and both clean predictions, in float64."""
    x, conditional, unconditional = torch.randn(3, 3, 4, 8, dtype=torch.float64)
    t = torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64)
    return x, t, conditional, unconditional, objective.denoised(x, conditional, t), objective.denoised(x, unconditional, t)


def dot(a, b):
    return (a * b).sum(dim=(1, 2), keepdim=True)


def paper(with_condition, without, scale, apg_scale, threshold):
    difference = with_condition - without
    if threshold:
        difference = difference * (threshold / dot(difference, difference).sqrt()).clamp(max=1)
    parallel = dot(difference, with_condition) / dot(with_condition, with_condition) * with_condition
    orthogonal = difference - parallel
    return with_condition + (scale - 1) * (orthogonal + (1 - apg_scale) * parallel)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("apg_scale", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1e6])
def test_velocities_are_shaped_as_the_paper_shapes_clean_data(objective, apg_scale, threshold):
    x, t, conditional, unconditional, with_condition, without = clean_data(objective)
    sigma = objective.alpha_sigma(t)[1]
    left = shaped(conditional, unconditional, with_condition, sigma, apg_scale=apg_scale, norm_threshold=threshold)
    out = objective.denoised(x, guided(conditional, left, sigma, scale=4.0), t)
    torch.testing.assert_close(out, paper(with_condition, without, 4.0, apg_scale, threshold))


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_momentum_sums_differences_of_clean_data(objective):
    momentum, total = Momentum(-0.5), 0.0
    for _ in range(3):
        _, t, conditional, unconditional, with_condition, without = clean_data(objective)
        sigma = objective.alpha_sigma(t)[1]
        total = with_condition - without - 0.5 * total
        left = shaped(conditional, unconditional, with_condition, sigma, momentum=momentum)
        torch.testing.assert_close(-sigma[:, None, None] * (conditional - left), total)


def test_momentum_is_finite_where_there_is_no_noise():
    momentum = Momentum(0.9)
    momentum.add(torch.ones(1, 2, 2), torch.tensor([0.3]))
    torch.testing.assert_close(momentum.add(torch.ones(1, 2, 2), torch.tensor([0.0])), torch.ones(1, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_norms_of_half_precision_do_not_overflow(dtype):
    conditional, unconditional = (300 * torch.randn(2, 64, 512)).to(dtype), torch.zeros(2, 64, 512, dtype=dtype)
    out = shaped(conditional, unconditional, conditional, torch.tensor([0.5, 0.9]), apg_scale=0.5, norm_threshold=1e4)
    assert out.dtype == dtype and out.isfinite().all()
    assert not torch.equal(out, conditional)


def test_an_item_without_a_clean_prediction_or_a_difference_is_finite():
    nothing = torch.zeros(1, 2, 4)
    assert shaped(nothing, nothing, nothing, torch.tensor([0.5]), apg_scale=1.0, norm_threshold=1.0).isfinite().all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"cfg_scale": float("nan")}, "cfg_scale is nan"),
        ({"scale_phi": 1.5}, "scale_phi is 1.5\n.*give a share from 0, which is none, to 1"),
        ({"apg_scale": -0.1}, "apg_scale is -0.1"),
        ({"apg_momentum": 1.0}, "apg_momentum is 1.0\n.*such as -0.5"),
        ({"cfg_norm_threshold": -1.0}, "cfg_norm_threshold is -1.0"),
        ({"cfg_interval": (0.8, 0.2)}, "cfg_interval is 0.8 to 0.2, which holds no noise level"),
    ],
)
def test_guidance_that_means_nothing_is_told(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Guidance(**arguments)


def test_an_interval_from_json_is_one():
    assert Guidance(cfg_interval=[0, 1]).for_run()["cfg_interval"] == EVERYWHERE
