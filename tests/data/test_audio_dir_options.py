"""Options of audio_dir, on ramps whose samples say where in the file they lie: times and masks stay exact after each of them."""

import math

import numpy as np
import pytest
import torch
from audio_files import make, signal, write

from stable_audio_tools.audio.io import load_audio, to_channels
from stable_audio_tools.audio.loudness import loudness_lufs
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config, parse_dataset_config
from stable_audio_tools.data.types import ItemKey

RATE, SIZE = 16000, 4000
LOW, HIGH = 0.1, 0.9  # a ramp's first and last sample


def ramp(count):
    return np.linspace(LOW, HIGH, count, dtype=np.float32)


def positions(audio, count):
    """Which sample of a ramp of `count` each of these is."""
    return ((audio.abs().double() - LOW) / (HIGH - LOW) * (count - 1)).round().long()


def ramp_file(root, count=20000, before=0, after=0, middle=0, channels=1):
    """A ramp with silence before, after and in the middle of it."""
    half, silent = count // 2, np.zeros
    parts = (silent(before), ramp(count)[:half], silent(middle), ramp(count)[half:], silent(after))
    frames = np.concatenate(parts).astype(np.float32)[:, None].repeat(channels, 1)
    return write(root / "ramp.wav", frames, RATE, subtype="FLOAT")


def config(root, **options):
    return {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(root)}], "exact_seconds": True, **options}


def visits(root, count=12, size=SIZE, channels=1, **options):
    data = parse_dataset_config(config(root, **options)).build(sample_size=size, sample_rate=RATE, audio_channels=channels)
    return [data.visit(ItemKey(0, visit, item)) for visit in range(count) for item in range(len(data))]


OPTIONS = {
    "plain": {},
    "flipped": {"phase_flip": True},
    "variable": {"variable_length": True},
    "trimmed": {"trim_silence": "both"},
    "no silence": {"remove_silence": True, "silence_threshold": [0.01, 0.01], "max_silence_duration": 0.02},
    "all": {"phase_flip": True, "variable_length": True, "trim_silence": "both", "remove_silence": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("random_crop", [True, False])
@pytest.mark.parametrize("count", [20000, 4000, 1500])
def test_times_and_masks_are_where_the_ramp_says(tmp_path, options, random_crop, count):
    ramp_file(tmp_path, count, channels=2)
    starts = set()
    for sample in visits(tmp_path, channels=2, random_crop=random_crop, **options):
        places = positions(sample.audio[:, : sample.valid_length], count)
        start = int(places[0, 0])
        assert sample.valid_length == min(count, SIZE)
        assert torch.equal(places, torch.arange(start, start + sample.valid_length).expand(2, -1))
        assert not sample.audio[:, sample.valid_length :].any()
        assert sample.audio.shape[-1] == (sample.valid_length if "variable_length" in options else SIZE)
        assert sample.metadata["seconds_start"] == start / RATE
        assert sample.metadata["seconds_total"] == count / RATE
        assert sample.metadata["timestamps"] == (start / count, min(start + SIZE, count) / count)
        starts.add(start)
    assert (len(starts) > 6) == (random_crop and count > SIZE)


@pytest.mark.parametrize("trim, kept", [("none", (3000, 5000)), ("end", (3000, 0)), ("both", (0, 0))])
def test_trimmed_silence_was_never_there(tmp_path, trim, kept):
    before, after = kept
    ramp_file(tmp_path, 20000, before=3000, after=5000)
    total = 20000 + before + after
    for sample in visits(tmp_path, 30, trim_silence=trim):
        start = round(sample.metadata["seconds_start"] * RATE)
        expected = torch.cat((torch.zeros(before), torch.from_numpy(ramp(20000)), torch.zeros(after)))[start : start + SIZE]
        assert torch.equal(sample.audio[0], expected)
        assert sample.metadata["seconds_total"] == total / RATE
        assert sample.metadata["timestamps"] == (start / total, (start + SIZE) / total)


def test_long_silence_is_found_and_short_files_are_padded_after_trimming(tmp_path):
    ramp_file(tmp_path, 1500, before=200_000, after=300_000)
    (sample,) = visits(tmp_path, 1, trim_silence="both", random_crop=False)
    assert torch.equal(sample.audio[0, :1500], torch.from_numpy(ramp(1500))) and not sample.audio[0, 1500:].any()
    assert sample.valid_length == 1500 and sample.metadata["seconds_total"] == 1500 / RATE


@pytest.mark.parametrize("kind, rate", [("flac", 44100), ("mp3", 48000), ("ogg", 22050)])
def test_trimmed_files_of_other_rates_are_parts_of_the_whole(tmp_path, kind, rate):
    path = make(tmp_path, kind, 1.0, rate)
    frames = np.concatenate((np.zeros((rate // 2, 2), np.float32), signal(1.0, rate), np.zeros((rate, 2), np.float32)))
    path = write(path, frames, rate)
    whole = to_channels(load_audio(path, sample_rate=RATE)[0], 1).clamp(-1, 1)
    loud = (load_audio(path)[0].abs().amax(0) >= 1e-3).nonzero()[:, 0]
    first, last = int(loud[0]) * RATE // rate, math.ceil((int(loud[-1]) + 1) * RATE / rate)
    for sample in visits(tmp_path, 8, trim_silence="both"):
        start = first + round(sample.metadata["seconds_start"] * RATE)
        assert torch.equal(sample.audio, whole[:, start : start + SIZE])
        assert sample.metadata["seconds_total"] == (last - first) / RATE


def test_a_shortened_silence_counts_as_it_is_served(tmp_path):
    ramp_file(tmp_path, 20000, middle=9000)
    options = {"remove_silence": True, "silence_threshold": [0.01, 0.05], "max_silence_duration": 0.1}
    expected = torch.from_numpy(np.concatenate((ramp(20000)[:10000], np.zeros(800, np.float32), ramp(20000)[10000:])))
    for sample in visits(tmp_path, 20, **options):
        start = round(sample.metadata["seconds_start"] * RATE)
        assert torch.equal(sample.audio[0], expected[start : start + SIZE])
        assert sample.metadata["seconds_total"] == 20800 / RATE


@pytest.mark.parametrize("size", [SIZE, 30000])
def test_levels_are_of_the_real_part_and_drawn_for_each_visit(tmp_path, size):
    write(tmp_path / "a.wav", 0.1 * signal(1.2, RATE), RATE)
    samples = visits(tmp_path, 12, size, 2, volume_norm=True, volume_norm_param=[-23.0, 3.0], phase_flip=True)
    levels = [loudness_lufs(sample.audio[:, : sample.valid_length], RATE) for sample in samples]
    assert all(-26.01 < level < -19.99 for level in levels) and max(levels) - min(levels) > 2
    again = visits(tmp_path, 12, size, 2, volume_norm=True, volume_norm_param=[-23.0, 3.0], phase_flip=True)
    assert all(torch.equal(a.audio, b.audio) for a, b in zip(samples, again, strict=True))


def test_float_files_beyond_full_scale_are_measured_before_they_are_limited(tmp_path):
    write(tmp_path / "a.wav", 9 * signal(0.25, RATE, 1), RATE, subtype="FLOAT")
    (sample,) = visits(tmp_path, 1, volume_norm="peak", volume_norm_param=[-6.0, 0.0])
    expected = signal(0.25, RATE, 1)[:, 0] * 9
    torch.testing.assert_close(sample.audio[0], torch.from_numpy(expected / np.abs(expected).max() * 10 ** (-6 / 20)))


def test_batches_of_variable_length(tmp_path):
    lengths = [900, 3999, 2500, 950, 9000, 2400, 5000, 1000, 2600]
    for number, length in enumerate(lengths):
        write(tmp_path / f"{number}.wav", ramp(length)[:, None], RATE, subtype="FLOAT")
    loader = create_dataloader_from_config(config(tmp_path, variable_length=True, drop_last=False), 3, SIZE, RATE, 1, 0)
    shapes, seen = [], []
    for audio, metadata in loader:
        shapes.append(audio.shape[-1])
        for row, item in zip(audio, metadata, strict=True):
            length = lengths[int(item["relpath"][0])]
            served = min(length, SIZE)
            start = round(item["seconds_start"] * RATE)
            assert torch.equal(positions(row[0, :served], length), torch.arange(start, start + served))
            assert item["padding_mask"].tolist() == [True] * served + [False] * (audio.shape[-1] - served)
            seen.append(item["relpath"])
    assert sorted(shapes) == [1000, 2600, 4000] and len(set(seen)) == 9


@pytest.mark.parametrize("kind", ["wav", "wav24", "float", "flac", "aiff", "caf", "ogg", "opus", "mp3", "mp3-vbr", "mp3-untagged"])
@pytest.mark.parametrize("rate", [48000, 16000])
@pytest.mark.slow
def test_crops_of_every_format_are_parts_of_the_whole(tmp_path, kind, rate):
    path = make(tmp_path, kind, 1.7, rate)
    whole = to_channels(load_audio(path, sample_rate=RATE)[0], 2).clamp(-1, 1)
    for sample in visits(tmp_path, 6, channels=2):
        start = round(sample.metadata["seconds_start"] * RATE)
        assert torch.equal(sample.audio, whole[:, start : start + SIZE])


REFUSED = [
    ({"trim_silence": "start"}, "trim_silence", None),
    ({"trim_silence": "end", "silence_threshold_db": None}, "silence_threshold_db", "set it to -60.0, or trim_silence to none"),
    ({"volume_norm_param": [-20.0, 1.0]}, "volume_norm_param", 'set "volume_norm": true, or remove it'),
]


@pytest.mark.parametrize("options, place, fix", REFUSED)
def test_what_cannot_be(tmp_path, options, place, fix):
    with pytest.raises(ConfigError) as error:
        parse_dataset_config(config(tmp_path, **options))
    (problem,) = error.value.problems
    assert problem.path[0] == place and fix in (None, problem.fix)


def test_loudness_is_not_of_clips_that_it_cannot_measure(tmp_path):
    ramp_file(tmp_path)
    wanted = parse_dataset_config(config(tmp_path, volume_norm=True))
    with pytest.raises(ConfigError, match="clips have 1 channels at 4000 Hz") as error:
        wanted.build(sample_size=SIZE, sample_rate=4000, audio_channels=1)
    assert [(problem.path, problem.fix) for problem in error.value.problems] == [(("volume_norm",), 'use "rms" or "peak"')]
    parse_dataset_config(config(tmp_path, volume_norm="rms")).build(sample_size=SIZE, sample_rate=4000, audio_channels=1)
