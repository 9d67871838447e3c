"""Which files a folder of audio holds, and what tells whether one of them has changed since."""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from stable_audio_tools.audio.io import CANNOT_READ, CONTAINERS, shown
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.captions import SIDECARS
from stable_audio_tools.data.types import Fault

Mark = tuple[int, ...]
ABSENT: Mark = (0, 0, 0)


class Found(NamedTuple):
    """An audio file. relpath: relative to the top, with "/". stem: its path without the extension. mark: changes with its content."""

    relpath: str
    path: str
    stem: str
    mark: Mark


@dataclass
class Listing:
    """The files below a folder.

    audio: in the order of their relative paths. bad: what cannot be read, with causes. others: numbers of other files, by extension.
    sidecars: files that describe audio, by their path with the extension in lower case.
    """

    audio: list[Found] = field(default_factory=list)
    bad: list[Fault] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    sidecars: dict[str, str] = field(default_factory=dict)
    sidecar_marks: dict[str, Mark] = field(default_factory=dict)

    def mark(self, file: Found) -> Mark:
        """The marks of a file and of each that can stand beside it."""
        beside = [self.sidecar_marks.get(file.stem + extension, ABSENT) for extension in SIDECARS]
        return sum(beside, file.mark)


def list_folder(top: str) -> Listing:
    """All files below `top`, except names that start with a dot; a folder met twice, through a link, is read once.

    Raises:
        ConfigError: `top` itself cannot be read.
    """
    _check_folder(top)
    listing, folders, met = Listing(), [(top, "")], set()
    while folders:
        folder, relative = folders.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in met:
                continue
            met.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):  # also the "._*" files that macOS leaves on foreign disks
                        continue
                    if entry.is_dir():
                        folders.append((entry.path, f"{relative}{entry.name}/"))
                    else:
                        _sort_in(entry, relative, listing)
        except OSError as error:
            listing.bad.append(Fault(shown(folder), f"cannot list the folder: {error.strerror}"))
    listing.audio.sort()
    return listing


def _check_folder(top: str) -> None:
    try:
        with os.scandir(top):
            return
    except FileNotFoundError:
        cause = "no such folder"
    except NotADirectoryError:
        cause = "a file, not a folder of audio"
    except OSError as error:
        cause = f"cannot list the folder: {error.strerror}"
    raise ConfigError([Problem((), cause, '"path" is relative to where the program starts')], shown(Path(top)))


def _sort_in(entry: os.DirEntry[str], relative: str, listing: Listing) -> None:
    path, dot = entry.path, entry.name.rfind(".")
    length = len(entry.name) - dot if dot > 0 else 0
    stem, extension = path[: len(path) - length], path[len(path) - length :].lower()
    if extension in CONTAINERS:
        mark = _mark(entry)
        if mark is None:
            listing.bad.append(Fault(shown(entry.path), "a broken link, or no regular file"))
        else:
            listing.audio.append(Found(relative + entry.name, path, stem, mark))
    elif extension in CANNOT_READ:
        listing.bad.append(Fault(shown(entry.path), f"{extension} cannot be read; convert it, for instance to FLAC"))
    else:
        listing.others[extension] += 1
        if extension in SIDECARS:
            listing.sidecars[stem + extension] = entry.path
            listing.sidecar_marks[stem + extension] = _mark(entry) or ABSENT


def _mark(entry: os.DirEntry[str]) -> Mark | None:
    """Size, time of change in nanoseconds, and number on the disk; None where there is no regular file behind the name."""
    try:
        status = entry.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ino) if stat.S_ISREG(status.st_mode) else None
