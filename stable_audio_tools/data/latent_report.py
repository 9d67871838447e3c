"""What a folder of stored latents holds, for people and for machines: its part of `check --data`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from stable_audio_tools.audio.io import shown
from stable_audio_tools.data.latent_folder import LatentFolder, NotServableError
from stable_audio_tools.data.pre_encoded import drawn
from stable_audio_tools.data.types import Fault


@dataclass(frozen=True)
class LatentReport:
    """One folder.

    files: usable items. hours, seconds (shortest, median, longest): of the audio that their frames stand for, where that is known.
    frames: shortest, median, longest. kind: latents, distributions or tokens. deviation: of all latents, the best `scale` of a
    pretransform; None for tokens, or where they were not read. encoder: what made them. bad: items that cannot be used, with causes.
    """

    id: str
    path: str
    files: int
    hours: float | None
    seconds: tuple[float, float, float] | None
    frames: tuple[int, float, int] | None
    channels: int
    kind: str
    encoder: str
    deviation: float | None
    captioned: int
    uncaptioned: int
    bad: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        found = self.files + len(self.bad)
        hours = "" if self.hours is None else f", {self.hours:.2f} hours"
        text = [f"{self.id}: {self.path}", f"  {self.files} of {found} items can be used{hours}"]
        text.append(f"  {self.kind} of {self.channels} {'codebooks' if self.kind == 'tokens' else 'channels'}, made by {self.encoder}")
        if self.seconds:
            text.append("  length {:.2f} to {:.2f} s, median {:.2f} s".format(*(self.seconds[index] for index in (0, 2, 1))))
        if self.frames:
            text.append("  frames: {} to {}, median {:g}".format(*(self.frames[index] for index in (0, 2, 1))))
        if self.deviation is not None:
            text.append(f"  standard deviation {self.deviation:.4g}: the best scale of the model's pretransform")
        text.append(f"  captions: {self.captioned} with, {self.uncaptioned} without")
        return text + [f"  bad: {path}: {cause}" for path, cause in self.bad]


def latent_report(
    name: str, folder: LatentFolder, *, samples_per_frame: int | None, sample_rate: int | None, thorough: bool
) -> LatentReport:
    """What a folder holds.

    Args:
        samples_per_frame, sample_rate: what a frame stands for, where the folder does not say.
        thorough: read all latents.
    """
    unread, deviation = _read_all(folder) if thorough else ({}, None)
    good = [item for item in range(len(folder)) if item not in unread]
    facts, frames = folder.facts, sorted(folder.frames[item] for item in good)
    ratio, rate = facts.samples_per_frame or samples_per_frame, facts.sample_rate or sample_rate
    seconds = sorted(folder.valid[item] * ratio / rate for item in good) if ratio and rate else []
    captioned = sum(bool(folder.metadata(item).get("prompt")) for item in good)
    return LatentReport(
        id=name,
        path=shown(folder.root),
        files=len(good),
        hours=sum(seconds) / 3600 if seconds else None,
        seconds=(seconds[0], median(seconds), seconds[-1]) if seconds else None,
        frames=(frames[0], median(frames), frames[-1]) if frames else None,
        channels=facts.channels,
        kind="tokens" if facts.tokens else "distributions" if facts.distribution else "latents",
        encoder=facts.encoder,
        deviation=deviation,
        captioned=captioned,
        uncaptioned=len(good) - captioned,
        bad=tuple((fault.path, fault.cause) for fault in (*folder.bad, *unread.values())),
    )


def _read_all(folder: LatentFolder) -> tuple[dict[int, Fault], float | None]:
    """Items that cannot be read, and the standard deviation of the rest; None: there are none, or they are tokens."""
    unread: dict[int, Fault] = {}
    count, total, squares = 0, 0.0, 0.0
    for item in range(len(folder)):
        try:
            latents = folder.read(item, 0, folder.valid[item])
        except NotServableError as error:
            unread[item] = Fault(folder.name(item), str(error))
            continue
        if not folder.facts.tokens:
            latents = (drawn(latents, item) if folder.facts.distribution else latents).to(torch.float64)
            count += latents.numel()
            total += float(latents.sum())
            squares += float(latents.square().sum())
    return unread, math.sqrt(max(squares / count - (total / count) ** 2, 0.0)) if count else None
