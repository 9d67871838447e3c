"""Latents as a picture: a strip of colours that says where in latent space each frame is, above the value of every channel.

The three colours of the strip are the first principal components, so frames that sound alike have like colours. Time runs as in
the spectrogram of the same clip, whose margins are shared.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stable_audio_tools.audio.spectrogram import BACKGROUND, MARGINS, plot_area_text, write_label

if TYPE_CHECKING:
    from PIL.Image import Image

COLD, MIDDLE, WARM = (0x3B, 0x82, 0xF6), (0x16, 0x14, 0x1F), (0xF9, 0x73, 0x16)
STRIP = 36  # pixels
GAP = 6
LARGEST = 0.995  # quantile of |value| that has the full colour, so that one outlier does not darken the rest


def save_latents(latents: Tensor, path: str | Path, *, width: int = 640, height: int = 220) -> None:
    """Write the picture of `latents` (C, T) to `path` as PNG; the folder must exist.

    Raises:
        ValueError: they have another shape, or no values.
    """
    from PIL import Image, ImageDraw
    from PIL.PngImagePlugin import PngInfo

    if latents.ndim != 2 or not latents.numel():
        raise ValueError(f"expected latents of shape (C, T), got {tuple(latents.shape)}")
    values = latents.detach().to("cpu", torch.float32).nan_to_num()
    left, top, right, _ = MARGINS
    columns, rows = width - left - right, height - 2 * top - STRIP - GAP
    largest = float(values.abs().flatten().quantile(LARGEST)) or 1.0
    image = Image.new("RGB", (width, height), BACKGROUND)
    image.paste(_picture(_rgb(principal_components(values)), columns, STRIP), (left, top))
    image.paste(_picture(_diverging(values / largest), columns, rows), (left, top + STRIP + GAP))
    draw, middle = ImageDraw.Draw(image), top + STRIP + GAP + rows / 2
    for y, text in ((top + STRIP / 2, "PCA"), (middle - 14, f"{len(values)} ch"), (middle + 14, f"±{largest:.2g}")):
        write_label(draw, (left - 8, y), text)
    info = PngInfo()
    info.add_text("plot-area", plot_area_text(left / width, top / height, 1 - right / width, 1 - top / height))
    image.save(path, format="PNG", pnginfo=info)


def principal_components(latents: Tensor, count: int = 3) -> Tensor:
    """(count, T) coordinates of the frames of `latents` (C, T) along its first principal axes; zeros where there are fewer.

    Each axis points to where its largest coordinate is positive, so that a picture does not flip between two steps.
    """
    centred = latents - latents.mean(dim=1, keepdim=True)
    _, strengths, axes = torch.linalg.svd(centred, full_matrices=False)
    found = (strengths[:, None] * axes)[:count]
    signs = found.gather(1, found.abs().argmax(dim=1, keepdim=True)).sign()
    return torch.cat([found * signs, found.new_zeros(count - len(found), latents.shape[1])])


def _rgb(components: Tensor) -> Tensor:
    """(1, T, 3) bytes: each component over its own range."""
    low, high = components.amin(dim=1, keepdim=True), components.amax(dim=1, keepdim=True)
    level = (components - low) / (high - low).clamp_min(1e-12)
    return (40 + 215 * level).T[None].round().to(torch.uint8)


def _diverging(values: Tensor) -> Tensor:
    """(C, T, 3) bytes: cold below 0, dark at 0, warm above."""
    size = values.abs().clamp(max=1)[..., None]
    end = torch.where(values[..., None] < 0, torch.tensor(COLD), torch.tensor(WARM)).float()
    return torch.lerp(torch.tensor(MIDDLE).float(), end, size).round().to(torch.uint8)


def _picture(colours: Tensor, width: int, height: int) -> Image:
    """(rows, columns, 3) bytes at another size; cells stay sharp where there is room, and are averaged where there is not."""
    from PIL import Image

    rows, columns = colours.shape[:2]
    image = Image.frombytes("RGB", (columns, rows), colours.contiguous().numpy().tobytes())
    sharp = image.resize((max(width, columns), max(height, rows)), Image.Resampling.NEAREST)
    return sharp.resize((width, height), Image.Resampling.BOX)
