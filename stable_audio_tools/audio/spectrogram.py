"""Audio as a picture: a log-mel spectrogram with axes, for demos, loggers and the run's report.

Levels are absolute (a full-scale sine reaches 0 dB), so pictures of two training steps can be compared by eye. The plot is
dark with light labels and sits well on a light and on a dark page. The PNG says where the plot lies inside the picture
(text chunk "plot-area": left, top, right, bottom as fractions), so that a player can draw its position over it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

# Ten evenly spaced colours of "magma" (S. van der Walt and N. Smith, 2015, published as CC0 with matplotlib 1.5).
MAGMA = (
    *((0x00, 0x00, 0x04), (0x18, 0x0F, 0x3E), (0x45, 0x10, 0x77), (0x72, 0x1F, 0x81), (0x9F, 0x2F, 0x7F)),
    *((0xCD, 0x40, 0x71), (0xF1, 0x60, 0x5D), (0xFD, 0x95, 0x67), (0xFE, 0xC9, 0x8D), (0xFC, 0xFD, 0xBF)),
)
FLOOR_DB, CEILING_DB = -84.0, -6.0  # chosen: the noise floor of quiet material stays black, single partials reach white
WINDOW_S = 0.046  # chosen: 2048 samples at 44.1 kHz, two partials 45 Hz apart are still told apart
FRAMES_AT_ONCE = 2048  # bounds memory whatever the length: 34 MB of stereo frames at 44.1 kHz
BACKGROUND, INK, FAINT = (0x16, 0x14, 0x1F), (0xD8, 0xD5, 0xE4), (0x6B, 0x66, 0x80)
NOT_FINITE = (0x00, 0x8C, 0x8C)  # teal is nowhere in magma
FREQUENCY_TICKS = (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
MARGINS = (76, 10, 14, 33)  # left, top, right, bottom in pixels
FONT_SIZE = 18


def save_spectrogram(audio: Tensor, sample_rate: int, path: str | Path, *, width: int = 640, height: int = 288) -> None:
    """Write the spectrogram of `audio` (C, T) to `path` as PNG; the folder must exist.

    Raises:
        ValueError: as `mel_spectrogram_image`.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("plot-area", plot_area_text(*plot_area(width, height)))
    mel_spectrogram_image(audio, sample_rate, width=width, height=height).save(path, format="PNG", pnginfo=info)


def mel_spectrogram_image(audio: Tensor, sample_rate: int, *, width: int = 640, height: int = 288) -> Image:
    """The spectrogram of `audio` as an RGB picture of `width` x `height` pixels, time in seconds by frequency in Hz.

    Channels are averaged in power, so an out-of-phase stereo signal is not lost. Stretches with NaN or infinite samples are
    painted teal. Silence and an empty clip say so in the picture.

    Args:
        audio: (C, T) samples of any length, full scale is 1.
        sample_rate: Hz.

    Raises:
        ValueError: `audio` is not (C, T), or the picture is too small for its labels.
    """
    from PIL import Image

    if audio.dim() != 2:
        raise ValueError(f"expected audio of shape (C, T), got {tuple(audio.shape)}")
    left, top, right, bottom = MARGINS
    columns, rows = width - left - right, height - top - bottom
    if columns < 64 or rows < 32:
        raise ValueError(
            f"a spectrogram of {width} x {height} pixels is too small, expected at least {64 + left + right} x {32 + top + bottom}"
        )

    audio = audio.detach().to("cpu", torch.float32)
    image = Image.new("RGB", (width, height), BACKGROUND)
    image.paste(_plot(audio, sample_rate, rows, columns), (left, top))
    _draw_axes(image, audio.shape[-1] / sample_rate, sample_rate / 2)
    _draw_remark(image, audio)
    return image


def plot_area(width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge of the plot inside the picture, as fractions of its size."""
    left, top, right, bottom = MARGINS
    return left / width, top / height, 1 - right / width, 1 - bottom / height


def plot_area_text(*fractions: float) -> str:
    """What a picture's file says of where its plot lies: left, top, right, bottom."""
    return " ".join(f"{fraction:.5f}" for fraction in fractions)


def mel_power(audio: Tensor, sample_rate: int, bands: int, columns: int) -> Tensor:
    """Power of `audio` (C, T) in mel bands, averaged over channels: (bands, columns), lowest band first.

    The columns share the clip's length evenly; each is the mean of all analysis frames that begin in it. A full-scale sine
    has a power of about 1 in its band.
    """
    n_fft = 2 ** max(6, round(math.log2(sample_rate * WINDOW_S)))
    frames_per_column = max(1, math.ceil(audio.shape[-1] / columns / (n_fft // 2)))
    count = columns * frames_per_column
    starts = torch.linspace(0, max(audio.shape[-1] - 1, 0), count).long()
    padded = torch.nn.functional.pad(audio, (n_fft // 2, n_fft // 2))
    window = torch.hann_window(n_fft)
    bank = mel_filterbank(sample_rate, n_fft, bands) / (window.sum() / 2).square()
    powers = []
    for some in starts.split(FRAMES_AT_ONCE):
        frames = padded[:, some[:, None] + torch.arange(n_fft)] * window
        powers.append(bank @ torch.fft.rfft(frames).abs().square().mean(0).T)
    return torch.cat(powers, dim=1).unflatten(1, (columns, frames_per_column)).mean(-1)


def mel_filterbank(sample_rate: int, n_fft: int, bands: int) -> Tensor:
    """Triangular filters, evenly spaced in mel = 2595 log10(1 + f / 700) (O'Shaughnessy 1987): (bands, n_fft // 2 + 1).

    Where bands lie closer together than FFT bins, a filter still reaches its two neighbouring bins: it interpolates them
    instead of being empty.
    """
    top = _mel(sample_rate / 2)
    centres = torch.tensor([_hertz(top * i / (bands + 1)) for i in range(bands + 2)]) * n_fft / sample_rate
    offset = torch.arange(n_fft // 2 + 1) - centres[1:-1, None]
    below = centres.diff()[:-1, None].clamp(min=1)
    above = centres.diff()[1:, None].clamp(min=1)
    return (1 - torch.where(offset < 0, -offset / below, offset / above)).clamp(min=0)


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def _hertz(mel: float) -> float:
    return 700 * (10 ** (mel / 2595) - 1)


def _plot(audio: Tensor, sample_rate: int, rows: int, columns: int) -> Image:
    """The bare spectrogram, high frequencies on top, one pixel a band and column."""
    from PIL import Image

    decibels = 10 * mel_power(audio.nan_to_num(0, 0, 0), sample_rate, rows, columns).clamp(min=1e-20).log10()
    level = ((decibels - FLOOR_DB) / (CEILING_DB - FLOOR_DB)).clamp(0, 1).flip(0)
    pixels = (level * 255).round().long()
    colours = torch.tensor(MAGMA, dtype=torch.float32)
    position = torch.linspace(0, len(MAGMA) - 1, 256)
    lower = position.long().clamp(max=len(MAGMA) - 2)
    table = torch.lerp(colours[lower], colours[lower + 1], (position - lower)[:, None]).round().to(torch.uint8)
    picture = table[pixels]
    picture[:, _not_finite_columns(audio, columns)] = torch.tensor(NOT_FINITE, dtype=torch.uint8)
    return Image.frombytes("RGB", (columns, rows), picture.numpy().tobytes())


def _not_finite_columns(audio: Tensor, columns: int) -> Tensor:
    """(columns,) bool, True where a column's stretch of time holds a sample that is no number."""
    bad = (~audio.isfinite()).any(0).nonzero().flatten()
    marked = torch.zeros(columns, dtype=torch.bool)
    marked[bad * columns // max(audio.shape[-1], 1)] = True
    return marked


def _draw_axes(image: Image, duration_s: float, nyquist: float) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    left, top, right, bottom = MARGINS
    base, edge = image.height - bottom, image.width - right
    for hertz in _apart(_frequency_ticks(nyquist), lambda hertz: (base - top) * _mel(hertz) / _mel(nyquist), FONT_SIZE + 4):
        y = base - (base - top) * _mel(hertz) / _mel(nyquist)
        draw.line([(left - 5, y), (left - 1, y)], fill=FAINT)
        write_label(draw, (left - 8, y), f"{hertz:g} Hz" if hertz < 1000 else f"{hertz / 1000:g} kHz", "rm")
    for seconds in _time_ticks(duration_s):
        x = left + (edge - left) * (seconds / duration_s if duration_s else 0)
        draw.line([(x, base), (x, base + 4)], fill=FAINT)
        label = f"{seconds:g} s" if duration_s >= 0.1 else f"{seconds * 1000:g} ms"
        half = draw.textlength(label, font=_font(FONT_SIZE)) / 2
        write_label(draw, (min(x, image.width - half - 2), base + 7), label, "mt")


def _frequency_ticks(nyquist: float) -> list[float]:
    return [hertz for hertz in FREQUENCY_TICKS if hertz <= nyquist]


def _time_ticks(duration_s: float) -> list[float]:
    """0 and up to six round times within the clip."""
    if duration_s <= 0:
        return [0.0]
    power = 10 ** math.floor(math.log10(duration_s))
    step = next(power * factor for factor in (0.1, 0.2, 0.5, 1, 2, 5) if power * factor * 6 >= duration_s)
    return [i * step for i in range(math.floor(duration_s / step * (1 + 1e-9)) + 1)]


def _apart(ticks: list[float], position: Callable[[float], float], distance: float) -> list[float]:
    """The ticks whose labels keep `distance` pixels from the one drawn before, from high to low frequency."""
    kept: list[float] = []
    for tick in reversed(ticks):
        if not kept or position(kept[-1]) - position(tick) >= distance:
            kept.append(tick)
    return kept


def _draw_remark(image: Image, audio: Tensor) -> None:
    """Say what an all-dark or teal picture means."""
    from PIL import ImageDraw

    if audio.numel() == 0:
        remark = "empty clip"
    elif not bool(audio.isfinite().all()):
        remark = "NaN or infinite samples"
    elif not bool(audio.any()):
        remark = "silence"
    else:
        return
    left, top, right, bottom = MARGINS
    middle = ((left + image.width - right) / 2, (top + image.height - bottom) / 2)
    draw = ImageDraw.Draw(image)
    box = draw.textbbox(middle, remark, font=_font(FONT_SIZE + 4), anchor="mm")
    draw.rectangle((box[0] - 8, box[1] - 6, box[2] + 8, box[3] + 6), fill=BACKGROUND)
    draw.text(middle, remark, fill=INK, font=_font(FONT_SIZE + 4), anchor="mm")


def write_label(draw: ImageDraw, position: tuple[float, float], text: str, anchor: str = "rm") -> None:
    """Write `text` in the type of all pictures; `anchor` as in PIL, by default the middle of its right edge."""
    draw.text(position, text, fill=INK, font=_font(FONT_SIZE), anchor=anchor)


def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)
