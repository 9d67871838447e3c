"""Spectrogram pictures: energy lands where the sound is, and odd clips still give a picture that says what is odd."""

import math

import pytest
import torch
from PIL import Image

from stable_audio_tools.audio.spectrogram import (
    FRAMES_AT_ONCE,
    NOT_FINITE,
    mel_filterbank,
    mel_power,
    mel_spectrogram_image,
    plot_area,
    save_spectrogram,
)


def sine(hertz: float, sample_rate: int, seconds: float) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(int(sample_rate * seconds)) / sample_rate)[None]


@pytest.mark.parametrize("sample_rate", [8000, 22050, 44100, 96000])
def test_a_full_scale_sine_has_power_one_in_its_own_band(sample_rate):
    power = mel_power(sine(1000, sample_rate, 0.5), sample_rate, bands=200, columns=100)[:, 50]
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    band = 2595 * math.log10(1 + 1000 / 700) / top * 201 - 1
    assert abs(power.argmax().item() - band) <= 1.5
    assert 0.3 < power.max() < 2
    far = torch.cat([power[: int(band) - 40], power[int(band) + 40 :]])
    assert far.max() < 1e-4


def test_no_filter_is_empty_even_where_bands_are_narrower_than_bins():
    assert (mel_filterbank(44100, 512, bands=250).sum(1) > 0).all()


def test_columns_follow_time_also_when_frames_come_in_several_blocks():
    audio = torch.cat([torch.zeros(1, 8000 * 300), 0.5 * torch.randn(1, 8000 * 300, generator=torch.Generator().manual_seed(0))], dim=1)
    power = mel_power(audio, 8000, bands=32, columns=600).mean(0)
    assert audio.shape[-1] / 256 > 4 * FRAMES_AT_ONCE
    assert power[:299].max() < 1e-9
    assert power[302:].min() > 1e-4


def test_opposite_channels_do_not_cancel():
    left = sine(500, 16000, 0.3)
    stereo = mel_power(torch.cat([left, -left]), 16000, bands=64, columns=50)
    torch.testing.assert_close(stereo, mel_power(left, 16000, bands=64, columns=50))


def test_louder_is_brighter_across_pictures():
    brightness = [
        mel_spectrogram_image(gain * sine(440, 16000, 0.3), 16000).convert("L").resize((1, 1)).getpixel((0, 0)) for gain in (0.01, 0.1, 1.0)
    ]
    assert brightness == sorted(set(brightness))


@pytest.mark.parametrize(
    "audio",
    [torch.zeros(2, 4000), torch.zeros(1, 0), torch.ones(1, 1), torch.randn(2, 37), torch.full((1, 500), math.nan), torch.randn(6, 900)],
    ids=["silence", "empty", "one sample", "very short", "all NaN", "six channels"],
)
def test_every_clip_gives_a_picture(audio, tmp_path):
    save_spectrogram(audio, 16000, tmp_path / "x.png", width=320, height=200)
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (320, 200)


def test_silence_is_told_from_an_empty_and_from_a_quiet_clip():
    pictures = [mel_spectrogram_image(a, 8000).tobytes() for a in (torch.zeros(1, 800), torch.zeros(1, 0), torch.full((1, 800), 1e-9))]
    assert len(set(pictures)) == 3


def test_samples_that_are_no_number_are_painted_where_they_are():
    audio = sine(440, 16000, 1.0)
    audio[:, 4000:4400] = math.nan
    image = mel_spectrogram_image(audio, 16000)
    left, top, right, _ = (round(e * s) for e, s in zip(plot_area(*image.size), [*image.size, *image.size], strict=True))
    teal = [x for x in range(left, right) if image.getpixel((x, top)) == NOT_FINITE]
    assert min(teal) == pytest.approx(left + 0.25 * (right - left), abs=2)
    assert max(teal) == pytest.approx(left + 0.275 * (right - left), abs=2)


def test_the_file_tells_where_its_plot_lies(tmp_path):
    save_spectrogram(torch.randn(1, 800), 8000, tmp_path / "x.png", width=400, height=240)
    with Image.open(tmp_path / "x.png") as image:
        assert [float(edge) for edge in image.text["plot-area"].split()] == pytest.approx(plot_area(400, 240), abs=1e-4)


def test_gradients_and_half_precision_do_not_matter():
    audio = sine(440, 8000, 0.1).to(torch.bfloat16).requires_grad_()
    assert mel_spectrogram_image(audio, 8000).tobytes() == mel_spectrogram_image(audio.detach().float(), 8000).tobytes()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected audio of shape \(C, T\), got \(1, 2, 800\)"):
        mel_spectrogram_image(torch.zeros(1, 2, 800), 8000)
    with pytest.raises(ValueError, match="100 x 200 pixels is too small, expected at least 154 x 75"):
        mel_spectrogram_image(torch.zeros(1, 800), 8000, width=100, height=200)
