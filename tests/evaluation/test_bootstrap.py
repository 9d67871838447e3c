"""Intervals: what they are made of, and that they hold what they say they hold."""

import math

import pytest
import torch

from stable_audio_tools.diffusion.seeds import generator_for
from stable_audio_tools.evaluation.bootstrap import Bootstrap, central_range, student_quantile
from stable_audio_tools.evaluation.clip_sets import Clip
from stable_audio_tools.evaluation.comparison import Comparison
from stable_audio_tools.evaluation.metrics import measure
from stable_audio_tools.evaluation.statistics import Share


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (30, 2.0423), (1000, 1.9623)]
)
def test_students_quantiles_are_those_of_the_tables(freedom, quantile):
    assert student_quantile(freedom) == pytest.approx(quantile, rel=0.004)


def test_resamples_are_of_the_size_of_the_set_and_seeded():
    counts = Bootstrap(50, seed=1).counts(30)
    assert counts.shape == (50, 30) and (counts.sum(1) == 30).all() and (counts == 0).any() and (counts > 1).any()
    assert torch.equal(counts, Bootstrap(50, seed=1).counts(30))
    assert not torch.equal(counts, Bootstrap(50, seed=2).counts(30))
    first, second = Bootstrap(50).two_counts(30, 30)
    assert torch.equal(first, second)
    first, second = Bootstrap(50).two_counts(30, 31)
    assert first.shape == (50, 30) and second.shape == (50, 31)


def test_the_mean_has_its_classical_interval():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 3 + 7
    measure = Bootstrap(2000).mean("x", values, {"rate": 1}, "lower", "dB")
    half = 1.96 * float(values.std()) / 20
    assert measure.value == pytest.approx(float(values.mean()))
    assert measure.high - measure.value == pytest.approx(half, rel=0.1) and measure.value - measure.low == pytest.approx(half, rel=0.1)
    assert measure.n == 400 and measure.recipe["resamples"] == 2000 and measure.recipe["rate"] == 1 and measure.better == "lower"


def test_what_cannot_be_measured_is_left_out_and_said():
    measure = Bootstrap().mean("x", torch.tensor([1.0, math.nan, 3.0]), {})
    assert measure.value == 2 and measure.n == 2 and measure.recipe["left_out"] == 1
    for values in (torch.tensor([math.nan]), torch.zeros(0)):
        nothing = Bootstrap().mean("x", values, {})
        assert math.isnan(nothing.value) and nothing.n == 0 and nothing.to_dict()["value"] is None
    one = Bootstrap().mean("x", torch.tensor([4.0]), {})
    assert one.value == 4 and math.isnan(one.low) and math.isnan(one.high)


@pytest.mark.parametrize("draws", [39, 79, 200, 1000])
def test_the_central_range_holds_the_next_draw(draws):
    """By ranks, so that few draws do not hold too little: exactly 95 % where R + 1 is a multiple of 40."""
    low, high = central_range(torch.arange(draws).double().flip(0))
    inside = high - low
    assert inside / (draws + 1) == pytest.approx(0.95, abs=0.005)


def test_no_interval_leaves_what_values_can_be():
    few = torch.tensor([0.0, 0.0, 0.0, 0.9])
    free, share = Bootstrap().mean("x", few, {}), Bootstrap().mean("x", few, {}, span=(0.0, 1.0))
    assert free.low < 0 and share.low == 0 and share.value == free.value and share.high == min(1.0, free.high)


def coverage(truth, interval, trials):
    ends = [interval(trial) for trial in range(trials)]
    return sum(low <= truth <= high for low, high in ends) / trials


@pytest.mark.exhaustive
@pytest.mark.parametrize("n", [8, 20, 100])
@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_intervals_of_means_hold_the_mean(n, draw):
    def interval(trial):
        values = torch.randn(n, generator=generator_for(trial, n))
        measure = Bootstrap(400, seed=trial).mean("x", values if draw == "normal" else -values.sigmoid().log(), {})
        return measure.low, measure.high

    mean = 0.0 if draw == "normal" else float(-torch.randn(4_000_000, generator=torch.Generator().manual_seed(1)).sigmoid().log().mean())
    assert 0.92 <= coverage(mean, interval, 1000) <= 0.985


class Samples:
    """The samples themselves as an embedding, so that clips can be drawn from a known distribution."""

    name, sample_rate = "samples", 8000

    @property
    def recipe(self):
        return {"embedder": "samples", "hash": "0", "sample_rate": 8000}

    def embed(self, audio):
        return audio[0]


def distances_of_draws(trial, shift, resamples):
    rows = torch.randn(120, 1, 6, generator=generator_for(trial, 9)) + 0.5 * torch.arange(6)
    made, real = ([Clip(row, 8000) for row in part] for part in (rows[:60] + shift, rows[60:]))
    comparison = Comparison(made, real, embedders=[Samples()], bootstrap=Bootstrap(resamples, seed=trial))
    return {found.name: found for found in measure(["frechet", "kernel", "kad"], comparison)}


@pytest.mark.exhaustive
@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_intervals_of_distances_hold_what_other_clips_would_give(shift):
    """On average over sets of this size; and sets of one source are within what one source gives."""
    others = [distances_of_draws(10_000 + trial, shift, 2) for trial in range(300)]
    found = [distances_of_draws(trial, shift, 120) for trial in range(120)]
    for name in found[0]:
        usual = sum(of[name].value for of in others) / len(others)
        assert sum(of[name].low <= max(usual, 0.0) <= of[name].high for of in found) / len(found) >= 0.9, name
        inside = sum(of[name].same_source[0] <= of[name].value <= of[name].same_source[1] for of in found) / len(found)
        assert inside >= 0.9 if shift == 0 else inside < 0.5, name


@pytest.mark.exhaustive
@pytest.mark.parametrize("p", [0.02, 0.3])
def test_intervals_of_shares_hold_the_share(p):
    def interval(trial):
        hits = int((torch.rand(60, generator=generator_for(trial, 3)) < p).sum())
        return Share(hits, 60).interval

    assert coverage(p, interval, 2000) >= 0.92
