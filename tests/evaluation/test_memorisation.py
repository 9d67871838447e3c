"""Copies of training clips are found wherever they begin, however loud; what only sounds alike is none."""

import random

import pytest
import torch

from stable_audio_tools.evaluation import copies, nearest
from stable_audio_tools.evaluation.bootstrap import Bootstrap
from stable_audio_tools.evaluation.clip_sets import AudioFiles, Clip
from stable_audio_tools.evaluation.clips import with_noise
from stable_audio_tools.evaluation.comparison import Comparison
from stable_audio_tools.evaluation.copies import best_alignment, pictures
from stable_audio_tools.evaluation.embedders import build_embedder
from stable_audio_tools.evaluation.memorisation import chance_of_more
from stable_audio_tools.evaluation.metrics import measure
from stable_audio_tools.evaluation.windows import sounding_windows

RATE = 8000


def melody(seed, seconds=4):
    """Notes of noise-like colour, so that no two are alike to the last sample."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    audio = torch.zeros(seconds * RATE)
    for _ in range(3 * seconds):
        length, start = RATE // 2, draw.randrange((seconds * RATE) - RATE // 2)
        grain = torch.randn(length // 2 + 1, generator=generator) * torch.exp(-torch.arange(length // 2 + 1) / draw.uniform(50, 600))
        audio[start : start + length] += torch.fft.irfft(grain * torch.exp(1j * 6.28 * torch.rand(len(grain), generator=generator)))
    return 0.3 * (audio / audio.abs().max())[None]


def clips(first, count, name):
    return [Clip(melody(first + i), RATE, f"{name}{i}") for i in range(count)]


TRAINING = clips(0, 12, "train")


def memorisation(generated, reference=None, training=TRAINING):
    comparison = Comparison(generated, reference, training=training, embedders=[build_embedder("log_mel")], bootstrap=Bootstrap(50))
    return {found.name.removesuffix("_log_mel"): found for found in measure(["memorisation"], comparison)}


def shifted(source, start):
    """A copy that is quieter, of the other polarity, noisy, and begins anywhere."""
    audio = -0.2 * source.audio[:, start : start + 2 * RATE]
    return Clip(with_noise(audio[None], 25, torch.Generator().manual_seed(3))[0], RATE, "copied")


def quieter(source):
    return Clip(0.3 * source.audio, RATE, "quieter")


@pytest.mark.parametrize("start", [0, 1, 777, 4321, 15999])
def test_a_copy_is_found_wherever_it_begins(start):
    found = memorisation([*clips(100, 3, "new"), shifted(TRAINING[5], start)])
    assert found["copies"].value == 0.25 and found["copies"].better == "lower"
    row = found["copies"].details[0]
    assert row["name"] == "copied" and row["training"] == "train5" and row["copy"] and row["correlation"] > 0.95
    assert row["training_start_s"] - row["start_s"] == pytest.approx(start / RATE, abs=0.01)
    assert [row["copy"] for row in found["copies"].details[1:]] == [False] * 3


def test_a_part_that_was_copied_into_something_new_is_found():
    audio = melody(100)
    audio[:, 9000:21000] = TRAINING[2].audio[:, 15555:27555]
    row = memorisation([Clip(audio, RATE, "spliced")])["copies"].details[0]
    assert row["copy"] and row["training"] == "train2" and row["start_s"] >= 1.1


@pytest.mark.slow
def test_unseen_clips_are_no_nearer_than_chance_and_copies_are():
    held_out = clips(200, 8, "held")
    new, copied = memorisation(clips(300, 8, "new"), held_out), memorisation([quieter(clip) for clip in TRAINING[:8]], held_out)
    assert new["copies"].value == new["copies_reference"].value == 0 and copied["copies"].value == 1
    chance = new["nearer_than_reference"]
    assert chance.same_source[0] <= chance.value <= chance.same_source[1]
    assert copied["nearer_than_reference"].value > copied["nearer_than_reference"].same_source[1]
    assert copied["nearest"].value > new["nearest"].value


@pytest.mark.slow
def test_the_training_clips_themselves_are_no_baseline():
    assert set(memorisation(clips(300, 3, "new"), TRAINING)) == {"copies", "nearest"}
    mixed = memorisation(clips(300, 3, "new"), [*TRAINING[:4], *clips(400, 3, "held")])
    assert mixed["copies_reference"].n == mixed["nearest_reference"].n == 3 and mixed["copies_reference"].value == 0


def test_the_nearest_clip_is_listed_with_its_place():
    row = memorisation([TRAINING[4], *clips(300, 2, "new")])["nearest"].details[0]
    assert row["name"] == row["training"] == "train4" and row["start_s"] == row["training_start_s"] and row["similarity"] > 0.999


def test_another_rate_and_more_channels_do_not_hide_a_copy(tmp_path):
    from stable_audio_tools.audio.io import save_audio
    from stable_audio_tools.audio.resample import resample

    source = TRAINING[3].audio
    save_audio(tmp_path / "train.flac", source, RATE)
    copied = Clip(resample(source[:, 3000:], RATE, 22050).expand(2, -1), 22050, "copied")
    row = memorisation([copied], training=AudioFiles([tmp_path / "train.flac"]))["copies"].details[0]
    assert row["copy"] and row["training"] == str(tmp_path / "train.flac")


def test_silence_is_no_copy_and_nothing_at_all_gives_a_report():
    silent = Clip(torch.zeros(1, RATE), RATE, "silent")
    broken = Clip(torch.full((1, RATE), torch.nan), RATE, "broken")
    found = memorisation([silent, broken, *clips(100, 1, "new")], training=[silent, *TRAINING[:2]])
    assert found["copies"].n == 1 and found["copies"].value == 0
    assert memorisation([silent, broken])["copies"].n == 0
    assert memorisation(clips(100, 2, "new"), training=[silent])["nearest"].to_dict()["value"] is None


def test_sounds_shorter_than_a_second_are_compared_as_a_whole():
    short = [Clip(clip.audio[:, 8000:13000], RATE, clip.name) for clip in TRAINING]
    row = memorisation([Clip(0.5 * short[1].audio, RATE, "short")], training=short)["copies"].details[0]
    assert row["copy"] and row["training"] == "train1"


@pytest.mark.slow
def test_the_search_does_not_depend_on_its_blocks(monkeypatch):
    generated = [*clips(100, 3, "new"), shifted(TRAINING[5], 777)]
    whole = memorisation(generated)
    monkeypatch.setattr(nearest, "BLOCK", 5)
    monkeypatch.setattr(copies, "BLOCK", 7)
    parts = memorisation(generated)
    assert parts["copies"].details == whole["copies"].details
    monkeypatch.setattr(nearest, "BLOCK", 10**6)
    whole = memorisation(generated)
    monkeypatch.setattr(nearest, "BLOCK", 80)  # all of the training clips but a few say how dimensions vary
    assert [row["training"] for row in memorisation(generated)["nearest"].details] == [row["training"] for row in whole["nearest"].details]


def test_pictures_do_not_know_the_level_and_tell_frames_apart():
    powers = torch.rand(70, copies.BANDS, generator=torch.Generator().manual_seed(0)) ** 4
    found = pictures(powers)
    assert found.shape == (70 - copies.FRAMES + 1, copies.FRAMES * copies.BANDS)
    torch.testing.assert_close(pictures(100 * powers), found)
    similarity = found @ found.T
    assert (similarity.diagonal() > 0.999).all() and (similarity - torch.eye(len(found))).max() < 0.3
    assert not pictures(torch.ones(60, copies.BANDS)).any() and not pictures(torch.zeros(60, copies.BANDS)).any()


def test_alignment_is_the_normalised_correlation():
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(500, generator=generator)
    signal[200:] *= 20
    window = 3 * signal[50:130] + 0.5 * torch.randn(80, generator=generator)
    correlation, place = best_alignment(window, signal)
    part = signal[50:130]
    expected = float((window * part).sum() / (window.norm() * part.norm()))
    assert place == 50 and correlation == pytest.approx(expected, abs=1e-6)
    assert best_alignment(torch.zeros(80), signal)[0] == 0


def test_windows_cover_a_clip_and_leave_silence_out():
    audio = torch.ones(1, 4 * RATE)
    audio[:, RATE : 3 * RATE] = 0
    starts, windows = zip(*sounding_windows(Clip(audio, RATE), RATE), strict=True)
    assert starts == (0, 0.5, 2.5, 3)
    assert all(window.square().mean().sqrt() == pytest.approx(0.1, rel=0.03) for window in windows)


def test_chance_of_more_counts_equal_ones_half():
    first, second = torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 0])
    ones = torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    assert float(chance_of_more(first, second, *ones)) == pytest.approx((1 + 1.5 + 2) / 6)
    twice = torch.tensor([[0.0, 0, 2]], dtype=torch.float64)
    assert float(chance_of_more(first, second, twice, ones[1])) == 1
