"""Inpainting masks: how often what is given, never on padding, and the conditions made of them."""

import json
from pathlib import Path

import pytest
import torch

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.inpainting import InpaintMasks, inpaint_conditions

FIGURES = json.loads((Path(__file__).parents[1] / "reference" / "inpaint_masks.json").read_text())
SETTINGS = {
    "default": {},
    "random_only": {"mask_type_probabilities": [1.0, 0.0, 0.0]},
    "causal_only": {"mask_type_probabilities": [0.0, 0.0, 1.0]},
    "full_only": {"mask_type_probabilities": [0.0, 1.0, 0.0]},
    "seg4_0.4_0.3_0.3": {"max_mask_segments": 4, "mask_type_probabilities": [0.4, 0.3, 0.3]},
}
SPANS = {"mask_type_probabilities": [0.0, 0.0, 0.0, 1.0]}


def masks(**settings):
    return validate(InpaintMasks, settings, "masks")


def real_frames(items=4000, frames=100, short=60):
    """Half of the items are real throughout, the others end at `short`."""
    real = torch.ones(items, frames, dtype=torch.bool)
    real[items // 2 :, short:] = False
    return real


def gaps(mask):
    """(B,) number of runs of frames to make."""
    made = ~mask
    return made[:, 0].long() + (made[:, 1:] & ~made[:, :-1]).sum(1)


@pytest.mark.parametrize("name", FIGURES)
def test_masks_are_distributed_as_those_of_published_models(name):
    mask = masks(**SETTINGS[name]).draw(real_frames())
    whole, padded = mask[:2000].float(), mask[2000:].float()
    figures = {
        "keep_fraction_full_items": whole.mean(),
        "keep_fraction_of_60_real": padded[:, :60].mean(),
        "padding_region_keep_fraction": padded[:, 60:].mean(),
        "share_all_zero": (~mask).all(1).float().mean(),
        "share_all_one": mask.all(1).float().mean(),
        "mean_runs_of_zeros_full": gaps(mask[:2000]).float().mean(),
    }
    tolerance = {"mean_runs_of_zeros_full": 0.2}  # five standard errors of either side, and of the others
    for figure, value in figures.items():
        assert float(value) == pytest.approx(FIGURES[name][figure], abs=tolerance.get(figure, 0.05)), figure


@pytest.mark.parametrize("settings", [SETTINGS["random_only"], SETTINGS["causal_only"], SPANS], ids=["segments", "causal", "spans"])
def test_what_is_to_be_made_lies_within_real_frames(settings):
    real = real_frames(400, 50, 7)
    real[-20:] = False
    mask = masks(**settings).draw(real)
    assert mask.dtype == torch.bool and mask.shape == real.shape
    assert mask[~real].all()
    assert mask[-20:].all()


def test_full_leaves_nothing_given_not_even_padding():
    assert not masks(mask_type_probabilities=[0.0, 1.0, 0.0]).draw(real_frames(8)).any()


def test_causal_makes_all_from_some_frame_to_the_last_real_one():
    made = ~masks(**SETTINGS["causal_only"]).draw(real_frames(1000, 20, 12))[500:, :12]
    assert (made[:, 1:] >= made[:, :-1]).all()
    assert made.sum(1).bincount(minlength=13).min() > 10  # from nothing to everything


def test_one_segment_is_of_any_length_at_any_place():
    made = ~masks(max_mask_segments=1, mask_type_probabilities=[1.0, 0.0, 0.0]).draw(torch.ones(4000, 8, dtype=torch.bool))
    assert (gaps(~made) == 1).all()
    assert (made.sum(1).bincount(minlength=9)[1:] / 4000 - 1 / 8).abs().max() < 0.03


def test_spans_are_up_to_four_most_often_one_and_cover_a_fifth_or_more():
    mask = masks(**SPANS).draw(torch.ones(4000, 200, dtype=torch.bool))
    share, count = (~mask).float().mean(1), gaps(mask)
    assert share.min() >= 0.195 and share.max() == pytest.approx(1, abs=0.01) and float(share.mean()) == pytest.approx(0.6, abs=0.03)
    assert count.min() == 1 and count.max() == 4
    assert float((count == 1).float().mean()) == pytest.approx(0.5, abs=0.1)


def test_a_seed_repeats_masks_and_items_differ():
    torch.manual_seed(3)
    first = masks(**SPANS).draw(real_frames(16))
    torch.manual_seed(3)
    assert torch.equal(masks(**SPANS).draw(real_frames(16)), first)
    assert len(first.unique(dim=0)) > 10


def test_without_the_kind_that_gives_nothing_something_is_given():
    chosen = masks(mask_type_probabilities=[0.1, 0.6, 0.2, 0.1]).partial()
    assert chosen.mask_type_probabilities == pytest.approx((0.25, 0.0, 0.5, 0.25))
    only = masks(mask_type_probabilities=[0.0, 1.0, 0.0])
    assert only.partial() == only


def test_conditions_are_the_mask_and_the_latents_that_are_given():
    latents, mask = torch.randn(2, 3, 8, dtype=torch.bfloat16), torch.arange(8).expand(2, -1) < 5
    made = inpaint_conditions(latents, mask)
    assert list(made) == ["inpaint_mask", "inpaint_masked_input"]
    keep, given = (made[name].tensor for name in made)
    assert keep.shape == (2, 1, 8) and keep.dtype == given.dtype == torch.bfloat16
    assert keep[0, 0].tolist() == [1.0] * 5 + [0.0] * 3
    assert torch.equal(given[..., :5], latents[..., :5]) and not given[..., 5:].any()


@pytest.mark.parametrize(
    "settings, path, message, fix",
    [
        (
            {"mask_type_probabilities": [0.5, 0.5]},
            "mask_type_probabilities",
            "3 or 4 probabilities are expected, got 2",
            "random_segments, full",
        ),
        ({"mask_type_probabilities": [0.5, 0.5, 0.1]}, "mask_type_probabilities", "add up to 1.1 and not to 1", "change one"),
        ({"mask_type_probabilities": [1.5, -0.5, 0.0]}, "mask_type_probabilities[1]", "a probability is at least 0", "use 0"),
        ({"max_mask_segments": 0}, "max_mask_segments", "0", ""),
        ({"max_segments": 3}, "max_segments", 'unknown key "max_segments"', "max_mask_segments"),
    ],
    ids=str,
)
def test_masks_that_cannot_be_drawn_are_refused(settings, path, message, fix):
    with pytest.raises(ConfigError) as caught:
        masks(**settings)
    (problem,) = caught.value.to_dict()["problems"]
    assert problem["path"] == path and message in problem["message"] and fix in problem["fix"]
