"""Resampling cell by cell: exact for parts, true to soxr, free of aliases."""

import numpy as np
import pytest
import soxr
import torch

from stable_audio_tools.audio.resample import grid, resample, resample_span, resampled_length

PAIRS = [(48000, 44100), (44100, 48000), (44100, 16000), (16000, 44100), (22050, 44100), (96000, 44100), (8000, 44100), (44056, 44100)]


def noise(frames: int, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(frames).uniform(-1, 1, (frames, channels)).astype(np.float32)


@pytest.mark.parametrize("source, target", PAIRS)
def test_parts_equal_the_whole_and_the_whole_is_soxrs(source, target):
    cells = grid(source, target)
    random = np.random.default_rng(0)
    for frames in (1, 2, 50, cells.source - 1, cells.source + 1, cells.source + cells.lead_in, 2 * cells.source + 777):
        x = noise(frames)
        length = resampled_length(frames, source, target)
        reference = soxr.resample(x, source, target)
        assert len(reference) == length
        if not length:
            continue
        whole = resample(torch.from_numpy(x.T.copy()), source, target).T.numpy()
        np.testing.assert_allclose(whole, reference, atol=1e-5 if source == 44056 else 2e-6, rtol=0)
        for start in random.integers(0, length, 3).tolist():
            stop = int(random.integers(start + 1, length + 1))
            part = resample_span(lambda a, b: x[a:b], frames, source, target, start, stop)  # noqa: B023
            assert np.array_equal(part, whole[start:stop]), (frames, start, stop)


def test_only_what_is_needed_is_read():
    asked = []
    x = noise(48000 * 60, 1)

    def read(start, stop):
        asked.append((start, stop))
        return x[start:stop]

    resample_span(read, len(x), 48000, 44100, 1_000_000, 1_066_150)
    ((start, stop),) = asked
    assert stop - start < 48000 * 1.5 + 2 * grid(48000, 44100).source + 1000


def test_a_tone_above_the_new_limit_vanishes_and_one_below_stays():
    t = torch.arange(48000, dtype=torch.float64) / 48000
    above, below = torch.sin(2 * torch.pi * 22800 * t), torch.sin(2 * torch.pi * 19000 * t)
    made = resample(torch.stack((above, below)).float(), 48000, 44100)[:, 2000:-2000]
    assert made[0].square().mean().sqrt() < 1e-6
    assert abs(made[1].square().mean().sqrt() - 0.5**0.5) < 1e-3


def test_the_same_rate_is_no_work():
    audio = torch.randn(2, 99)
    assert resample(audio, 44100, 44100) is audio
