"""Statistics of sounds against what is known of tones, noise and stereo images; distances of their distributions."""

import math

import pytest
import torch
from sounds_for_tests import RATE, changed, clipped, low_passed, noisy, real_clips

from stable_audio_tools.evaluation.bootstrap import Bootstrap
from stable_audio_tools.evaluation.clip_sets import Clip
from stable_audio_tools.evaluation.clip_statistics import STATISTICS, clip_statistics
from stable_audio_tools.evaluation.comparison import Comparison
from stable_audio_tools.evaluation.metrics import measure
from stable_audio_tools.evaluation.sound_statistics import wasserstein

HIGH = 48000


def tone(hertz, level=1.0, phase=0.0, seconds=1.0, rate=HIGH):
    return level * torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * rate)).double() / rate + phase).float()[None]


def noise(level=0.1, channels=1, seed=0):
    return level * torch.randn(channels, HIGH, generator=torch.Generator().manual_seed(seed))


def test_a_full_scale_tone_has_the_levels_of_the_standard():
    found = clip_statistics(tone(997), HIGH)
    assert found["loudness"] == pytest.approx(-3.01, abs=0.02), "BS.1770-4, annex 1"
    assert found["sample_peak"] == pytest.approx(0, abs=0.01) and found["true_peak"] == pytest.approx(0, abs=0.1)
    assert set(found) == set(STATISTICS)


def test_the_true_peak_lies_between_the_samples():
    found = clip_statistics(tone(HIGH / 4, 0.5, math.pi / 4), HIGH)
    assert found["sample_peak"] == pytest.approx(-9.03, abs=0.02) and found["true_peak"] == pytest.approx(-6.02, abs=0.2)


def test_spectra_are_where_they_are():
    for hertz in (200, 3000, 15000):
        found = clip_statistics(tone(hertz, 0.5), HIGH)
        assert found["centroid"] == pytest.approx(hertz, abs=25) and found["rolloff"] == pytest.approx(hertz, abs=50)
        assert found["bandwidth"] < 60 and found["flatness"] < 1e-4
    white = clip_statistics(noise(), HIGH)
    assert white["centroid"] == pytest.approx(12000, rel=0.02) and white["bandwidth"] == pytest.approx(24000 / 12**0.5, rel=0.02)
    assert white["rolloff"] == pytest.approx(0.85 * 24000, rel=0.02) and white["flatness"] > 0.95
    assert clip_statistics(noise() + 0.3, HIGH)["centroid"] == pytest.approx(12000, rel=0.03), "a constant is no low sound"


def test_clipping_silence_and_offset_are_shares_and_levels():
    audio = torch.zeros(1, HIGH)
    audio[:, : HIGH // 4] = tone(500, 4.0, seconds=0.25).clamp(-1, 1)
    found = clip_statistics(audio, HIGH)
    assert found["silence"] == pytest.approx(0.75, abs=0.02)
    assert found["clipping"] == pytest.approx(0.25 * (1 - 2 * math.asin(0.25) / math.pi), abs=0.005)
    assert clip_statistics(audio + 0.1, HIGH)["dc"] == pytest.approx(0.1 + float(audio.mean()), abs=1e-5)
    assert clip_statistics(0.99 * audio, HIGH)["clipping"] == 0


@pytest.mark.parametrize(
    ("channels", "width", "correlation"),
    [([1, 1], 0, 1), ([1, -1], 1, -1), ([1, 0.5], 0.1, 1)],
    ids=["mono in two", "opposite", "panned"],
)
def test_stereo_images(channels, width, correlation):
    found = clip_statistics(noise() * torch.tensor(channels)[:, None], HIGH)
    assert found["stereo_width"] == pytest.approx(width, abs=1e-3) and found["stereo_correlation"] == pytest.approx(correlation, abs=1e-3)


def test_independent_channels_are_half_as_wide_as_opposite_ones():
    found = clip_statistics(noise(channels=2), HIGH)
    assert found["stereo_width"] == pytest.approx(0.5, abs=0.02) and found["stereo_correlation"] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("samples", [2, 100, 5000])
def test_silence_and_short_clips_have_no_surprises(channels, samples):
    quiet = clip_statistics(torch.zeros(channels, samples), RATE)
    assert quiet["loudness"] == -70 and quiet["sample_peak"] == quiet["true_peak"] == -120 and quiet["silence"] == 1
    assert math.isnan(quiet["centroid"]) and math.isnan(quiet["flatness"])
    sounding = clip_statistics(0.1 * torch.randn(channels, samples), RATE)
    assert all(math.isfinite(value) for name, value in sounding.items() if name != "stereo_correlation")


def test_memory_does_not_grow_with_the_frames(monkeypatch):
    from stable_audio_tools.evaluation import clip_statistics as module

    whole = clip_statistics(noise(), HIGH)
    monkeypatch.setattr(module, "FRAMES_AT_ONCE", 3)
    assert clip_statistics(noise(), HIGH) == pytest.approx(whole, rel=1e-6)


def distance(first, second):
    first, second = (torch.tensor(values, dtype=torch.float64) for values in (first, second))
    return float(wasserstein(first, second, *(values.new_ones(1, len(values)) for values in (first, second))))


def test_wasserstein_is_how_far_values_are_moved():
    assert distance([1, 2, 3], [3, 1, 2]) == 0
    assert distance([1, 2, 3], [4, 5, 6]) == pytest.approx(3)
    assert distance([0, 0, 0, 4], [0, 0]) == pytest.approx(1)
    first, second = torch.randn(40, generator=torch.Generator().manual_seed(0)), torch.rand(40, generator=torch.Generator().manual_seed(1))
    assert distance(first.tolist(), second.tolist()) == pytest.approx(float((first.sort()[0] - second.sort()[0]).abs().mean()), rel=1e-6)
    repeated = distance(first.tolist(), second.repeat(3).tolist())
    assert repeated == pytest.approx(distance(first.tolist(), second.tolist()), rel=1e-6)


def measures(generated, reference=None):
    return {found.name: found for found in measure(["statistics"], Comparison(generated, reference, bootstrap=Bootstrap(40)))}


def test_equal_sets_have_equal_statistics_and_one_set_has_no_distances():
    clips = real_clips(12)
    alone, both = measures(clips), measures(clips, clips[::-1])
    assert set(alone) == {"broken", *STATISTICS} and set(both) == {"broken", *STATISTICS, *(f"{name}_distance" for name in STATISTICS)}
    for name in STATISTICS:
        assert abs(both[f"{name}_distance"].value) < 1e-9 and both[name].value == alone[name].value
        assert both[name].low <= both[name].value <= both[name].high


@pytest.mark.slow
def test_each_damage_moves_the_statistic_that_it_is_about():
    clips = real_clips(20)
    grades = {
        "loudness_distance": [changed(clips, lambda audio, gain=gain: gain * audio) for gain in (0.9, 0.5, 0.1)],
        "flatness_distance": [noisy(clips, snr_db) for snr_db in (40, 20, 0)],
        "rolloff_distance": [low_passed(clips, hertz) for hertz in (1500, 500, 200)],
        "dc_distance": [changed(clips, lambda audio, offset=offset: audio + offset) for offset in (0.01, 0.1, 0.3)],
    }
    for name, sets in grades.items():
        values = [measures(damaged, clips)[name].value for damaged in sets]
        assert 0 < values[0] < values[1] < values[2], (name, values)
    full = changed(clips, lambda audio: audio / audio.abs().max())
    assert measures(clipped(full, 10))["clipping"].value > measures(clipped(full, 2))["clipping"].value > measures(full)["clipping"].value


def test_broken_clips_are_counted_and_left_out():
    clips = [*real_clips(6), Clip(torch.full((1, 9), torch.inf), RATE), Clip(torch.zeros(2, 0), RATE)]
    found = measures(clips)
    assert found["broken"].value == 0.25 and found["broken"].n == 8 and found["broken"].low > 0.05
    assert found["loudness"].value == measures(clips[:6])["loudness"].value and found["loudness"].n == 6


def test_too_low_a_rate_has_no_loudness_and_says_so():
    found = measures([Clip(clip.audio, 4000) for clip in real_clips(3)])["loudness"]
    assert found.to_dict()["value"] is None and found.recipe["left_out"] == 3
