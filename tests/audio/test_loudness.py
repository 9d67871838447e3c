"""Loudness against the numbers of ITU-R BS.1770 and EBU Tech 3341, and against another implementation."""

import math

import pytest
import torch
from torchaudio.functional import loudness

from stable_audio_tools.audio.loudness import k_weighting, loudness_lufs


def sine(frequency_hz, level_db, seconds, rate=48000, channels=2):
    t = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return (10 ** (level_db / 20) * (2 * math.pi * frequency_hz * t).sin()).expand(channels, -1).float()


def test_coefficients_at_48_khz_are_the_standards():
    (shelf, poles), (high_pass, high_pass_poles) = k_weighting(48000)
    assert shelf == pytest.approx([1.53512485958697, -2.69169618940638, 1.19839281085285], abs=1e-12)
    assert poles == pytest.approx([1, -1.69065929318241, 0.73248077421585], abs=1e-12)
    assert high_pass == [1, -2, 1]
    assert high_pass_poles == pytest.approx([1, -1.99004745483398, 0.99007225036621], abs=1e-12)


@pytest.mark.parametrize("rate", [16000, 44100, 48000, 96000])
def test_a_full_scale_sine_in_one_channel(rate):
    audio = sine(997, 0, 3, rate)
    assert loudness_lufs(audio[:1], rate) == pytest.approx(-3.01, abs=0.05)
    assert loudness_lufs(audio * torch.tensor([[1.0], [0.0]]), rate) == pytest.approx(-3.01, abs=0.05)


STEPS = {  # EBU Tech 3341 (2016), table 1: levels and seconds of a stereo sine of 1 kHz, and its loudness
    1: ([(-23, 20)], -23),
    2: ([(-33, 20)], -33),
    3: ([(-36, 10), (-23, 60), (-36, 10)], -23),
    4: ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23),
    5: ([(-26, 20), (-20, 20.1), (-26, 20)], -23),
}


@pytest.mark.parametrize("case", STEPS)
def test_the_cases_of_ebu_tech_3341(case):
    steps, expected = STEPS[case]
    audio = torch.cat([sine(1000, level_db, seconds, 16000) for level_db, seconds in steps], 1)
    assert loudness_lufs(audio, 16000) == pytest.approx(expected, abs=0.1)


def test_quiet_noise_is_as_torchaudio_says_and_loud_noise_is_so_much_louder():
    noise = 0.02 * torch.randn(2, 44100 * 3, generator=torch.Generator().manual_seed(0))
    quiet = loudness_lufs(noise, 44100)
    assert quiet == pytest.approx(float(loudness(noise, 44100)), abs=0.1)
    assert loudness_lufs(30 * noise, 44100) == pytest.approx(quiet + 20 * math.log10(30), abs=1e-4)  # where filters must not clip


def test_clips_shorter_than_a_block_silence_and_broken_audio():
    assert loudness_lufs(sine(997, 0, 0.2)[:1], 48000) == pytest.approx(-3.01, abs=0.3)
    assert loudness_lufs(torch.zeros(2, 48000), 48000) == -math.inf
    assert math.isnan(loudness_lufs(sine(997, 0, 1).index_fill(1, torch.tensor([99]), math.nan), 48000))


@pytest.mark.parametrize("channels, rate", [(3, 48000), (1, 4000)])
def test_what_it_cannot_measure(channels, rate):
    with pytest.raises(ValueError, match=f"loudness of {channels} channels at {rate} Hz"):
        loudness_lufs(torch.zeros(channels, 48000), rate)
