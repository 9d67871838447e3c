"""The constant-Q transform is the sum it stands for, however often its signal was halved; decimation keeps what fits."""

import math

import pytest
import torch

from stable_audio_tools.nn.constant_q import ConstantQ
from stable_audio_tools.nn.decimate import Decimate

RATE, BINS = 8000, 12


def transform(hop_length: int = 64, n_octaves: int = 6, fmin: float = 50.0) -> ConstantQ:
    return ConstantQ(RATE, hop_length=hop_length, n_octaves=n_octaves, bins_per_octave=BINS, fmin=fmin)


def by_definition(audio: torch.Tensor, frequency: float, centre: int) -> torch.Tensor:
    """One bin of one frame of (T,) audio, summed as the docstring says, in float64."""
    length = RATE / (frequency * (2 ** (1 / BINS) - 1))
    around = torch.arange(-math.ceil(length), math.ceil(length) + 1, dtype=torch.float64)
    window = torch.cos(math.pi * (around / length).clamp(-0.5, 0.5)).square()
    inside = (around + centre >= 0) & (around + centre < len(audio))
    heard = torch.where(inside, audio.double()[(around.long() + centre).clamp(0, len(audio) - 1)], 0)
    return (heard * window * torch.exp(-2j * math.pi * frequency * around / RATE)).sum() / window.sum() * math.sqrt(length)


@pytest.mark.parametrize(("hop_length", "halvings"), [(64, [5, 4, 3, 2, 1, 0]), (50, [1, 1, 1, 1, 1, 0]), (25, [0] * 6)])
def test_each_bin_is_the_windowed_sum_it_stands_for(hop_length, halvings):
    audio, cqt = torch.randn(8000), transform(hop_length)
    assert cqt.halvings == halvings
    spectrum = cqt(audio[None, None])[0, 0]
    assert spectrum.shape == (6 * BINS, 8000 // hop_length + 1)
    for bin_ in range(0, 6 * BINS, 5):
        for frame in (0, 8000 // hop_length // 2, 8000 // hop_length):
            want = by_definition(audio, 50 * 2 ** (bin_ / BINS), frame * hop_length)
            assert abs(spectrum[bin_, frame] - want) < (0.02 if any(halvings) else 5e-5)  # typical values are 1.1


def test_a_tone_is_heard_in_its_bin_with_its_phase():
    time = torch.arange(8000) / RATE
    for bin_ in (6, 30, 65):
        frequency = 50 * 2 ** (bin_ / BINS)
        spectrum = transform()(torch.cos(2 * math.pi * frequency * time + 0.7)[None, None])[0, 0]
        middle = spectrum[:, 62]
        assert middle.abs().argmax() == bin_
        loudness = 0.5 * math.sqrt(RATE / (frequency * (2 ** (1 / BINS) - 1)))
        expected = loudness * torch.exp(torch.tensor(1j * (2 * math.pi * frequency * 62 * 64 / RATE + 0.7)))
        assert abs(middle[bin_] - expected) < 0.01 * loudness


def test_white_noise_is_equally_loud_in_all_bins():
    levels = transform()(torch.randn(4, 1, 40000)).abs().square().mean((0, 1, 3))
    assert levels[24:].min() > 1.2 and levels[24:].max() < 1.8  # 1.5, the noise gain of the Hann window


def test_bins_above_half_the_rate_are_silent():
    spectrum = transform(n_octaves=8)(torch.randn(1, 1, 4000))[0, 0]
    loud = spectrum.abs().amax(-1) > 0
    assert loud.tolist() == [50 * 2 ** (bin_ / BINS) < RATE / 2 for bin_ in range(8 * BINS)]


@pytest.mark.parametrize("samples", [1, 63, 64, 1000])
def test_any_length_has_a_frame_per_hop_and_channels_stay_apart(samples):
    audio = torch.randn(2, 3, samples)
    spectrum = transform()(audio)
    assert spectrum.shape == (2, 3, 6 * BINS, samples // 64 + 1)
    torch.testing.assert_close(spectrum[1, 2], transform()(audio[1:, 2:])[0, 0])


def test_casts_leave_filters_exact_and_half_precision_is_transformed_in_single():
    audio = torch.randn(1, 1, 2000).bfloat16()
    want = transform()(audio.float())
    torch.testing.assert_close(transform().bfloat16()(audio), want)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(transform()(audio.float()), want)
    assert not transform().state_dict()


def test_a_gradient_reaches_every_sample():
    audio = torch.randn(1, 1, 1000, requires_grad=True)
    transform()(audio).abs().sum().backward()
    assert audio.grad.isfinite().all() and audio.grad.all()


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_decimation_keeps_what_fits_and_drops_the_rest(factor):
    decimate, time = Decimate(factor), torch.arange(2000.0)
    kept, lost = (torch.cos(math.pi * share / factor * time)[None, None] for share in (0.8, 1.1))
    assert decimate(kept).shape == (1, 1, 2000 // factor)
    torch.testing.assert_close(decimate(kept)[..., 40:-40], kept[..., ::factor][..., : 2000 // factor][..., 40:-40], rtol=0, atol=2e-3)
    if factor > 1:
        assert decimate(lost)[..., 40:-40].abs().max() < 2e-3


def test_what_lies_beside_the_signal_is_its_edge_or_silence():
    ones = torch.ones(1, 1, 100)
    torch.testing.assert_close(Decimate(2)(ones), torch.ones(1, 1, 50))
    assert 0.4 < Decimate(2, edges="constant")(ones)[0, 0, 0] < 0.8
