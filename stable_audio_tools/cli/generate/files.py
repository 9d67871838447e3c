"""Where clips go: their names, their format, and the settings beside each."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from stable_audio_tools.audio.io import WRITTEN, save_audio, unwritable
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.models.atomic_file import atomic_file

from .flags import FORMATS, NORMALIZE
from .levels import cannot_level, levelled
from .makers import Clip

SUFFIXES = tuple(f".{name}" for name in FORMATS)
OTHER_AUDIO = (".m4a", ".aac", ".opus", ".aif", ".aiff", ".wma", ".caf", ".w64")
SLUG = 48  # characters of a prompt that a file name repeats


@dataclass(frozen=True)
class Output:
    """How clips are written.

    place: as it was asked for. file: where the only clip goes; None: each gets a name in `folder`.
    suffix: of the format, such as ".wav". bits: of a sample. normalize, loudness: see `levels`.
    """

    place: str
    folder: Path
    file: Path | None
    suffix: str
    bits: int
    normalize: str
    loudness: float | None

    @classmethod
    def of(cls, args: argparse.Namespace, count: int) -> Output:
        """The output for so many clips.

        Raises:
            ConfigError: it cannot become what it says, or its flags exclude each other.
        """
        out, source = Path(args.out), f"--out {args.out}"
        if out.suffix.lower() in OTHER_AUDIO:
            raise ConfigError(f"cannot write {out.suffix} files; name one that ends in {', '.join(SUFFIXES)}, or a folder", source=source)
        named = out.suffix.lower() in SUFFIXES
        if named:
            _check_file(out, count, args.format, source)
        suffix = out.suffix.lower() if named else f".{args.format or FORMATS[0]}"
        depths = WRITTEN[suffix][1]
        if args.bits is not None and (args.bits not in depths or len(depths) == 1):
            which = f"{suffix} has {' or '.join(map(str, depths))}" if len(depths) > 1 else f"{suffix} files have no bit depth"
            raise ConfigError([Problem((), which, "leave it out, or choose another format")], source=f"--bits {args.bits}")
        _check_folder(out.parent if named else out, source)
        folder, file = (out.parent, out) if named else (out, None)
        return cls(args.out, folder, file, suffix, args.bits or 16, args.normalize or NORMALIZE[0], args.loudness)

    @property
    def settings(self) -> dict[str, Any]:
        """As flags by name."""
        depth = self.bits if len(WRITTEN[self.suffix][1]) > 1 else None
        return {"format": self.suffix[1:], "bits": depth, "normalize": self.normalize, "loudness": self.loudness}

    def check(self, sample_rate: int, channels: int) -> None:
        """Raises ConfigError where such audio cannot be written so."""
        if reason := unwritable(self.suffix, sample_rate, channels):
            raise ConfigError(reason, source=f"--out {self.place}")
        if self.loudness is not None and (reason := cannot_level(sample_rate, channels)):
            raise ConfigError(reason, source="--loudness")

    def paths(self, clips: Sequence[Clip], *, replacing: bool) -> list[Path]:
        """The file of each clip; in a folder never twice the same, and unless `replacing` none that is there."""
        if self.file is not None:
            return [self.file]
        paths: dict[Path, None] = {}
        for clip in clips:
            stem = clip.name or f"{_slug(str(clip.metadata.get('prompt', 'clip')))}_seed{clip.seed}"
            names = (f"{stem}{self.suffix}", *(f"{stem}_{number}{self.suffix}" for number in range(2, 2 + len(clips) + 10_000)))
            free = (path for name in names if (path := self.folder / name) not in paths and (replacing or not _there(path)))
            paths[next(free)] = None
        return list(paths)

    def write(self, path: Path, audio: Tensor, sample_rate: int, settings: Mapping[str, Any]) -> None:
        """Write a clip (C, T) and its settings.

        Raises:
            ConfigError: one of them cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the folder: {error.strerror}", source=f"--out {self.place}") from None
        audio, facts = levelled(audio.float().cpu(), sample_rate, normalize=self.normalize, loudness=self.loudness)
        saved = save_audio(path, audio, sample_rate, bit_depth=self.bits)
        result = facts | {name: count for name, count in saved._asdict().items() if count}
        write_settings(path, {**settings, "result": result})


def _there(path: Path) -> bool:
    return path.exists() or path.with_suffix(".json").exists()


def _slug(prompt: str) -> str:
    return re.sub(r"[^\w#]+", "_", prompt.lower()).strip("_")[:SLUG].rstrip("_") or "clip"


def write_settings(audio: Path, settings: Mapping[str, Any]) -> None:
    """Write them beside the clip at `audio`.

    Raises:
        ConfigError: they cannot be written.
    """
    path = audio.with_suffix(".json")
    text = json.dumps({key: value for key, value in settings.items() if value is not None}, indent=2, ensure_ascii=False)
    try:
        with atomic_file(path) as file:
            file.write(f"{text}\n".encode())
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", source=str(path)) from None


def _check_file(out: Path, count: int, asked: str | None, source: str) -> None:
    if count > 1:
        raise ConfigError(f"one file for {count} clips; name a folder", source=source)
    if out.is_dir():
        raise ConfigError("this is a folder; name a file, or a folder without such an ending", source=source)
    if out.with_suffix(".json").exists() and not out.exists():
        raise ConfigError(f"its settings would replace {out.with_suffix('.json')}; choose another name", source=source)
    if asked is not None and out.suffix.lower() != f".{asked}":
        raise ConfigError([Problem((), f"ends in {out.suffix}, and --format is {asked}", "leave --format out")], source=source)


def _check_folder(folder: Path, source: str) -> None:
    """Whether it is there or can be made."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        cause = f"{existing} cannot be written to" if existing.is_dir() else f"{existing} is a file"
        raise ConfigError([Problem((), cause, "name another place")], source=source)
