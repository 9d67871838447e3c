"""Looking over a folder of audio before training: which files there are, what they hold, and which cannot be used.

Only headers and a few short stretches are read, so the time goes with the number of files and not with their length; short
files are read whole. Bad files are listed with their cause, once, and never served.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from stable_audio_tools.audio.io import CANNOT_READ, CONTAINERS, AudioInfo, can_make, peak_level, probe, read_part, shown
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.captions import SIDECARS, Metadata, over, read_sidecars, read_tables
from stable_audio_tools.data.tags import read_tags
from stable_audio_tools.data.types import Fault

log = logging.getLogger(__name__)

WHOLE = 65536  # frames up to which a file is read whole
STRETCH = 4096  # frames read at the start, in the middle and at the end of a longer one
BLOCK = 1 << 19  # frames read at once where all of a file is read
PROGRESS_S = 10.0
LISTED = 20  # bad files named in the log, and causes in an error
_T = TypeVar("_T")
_R = TypeVar("_R")
THREADS = min(32, 4 * (os.cpu_count() or 1))


@dataclass(frozen=True)
class Limits:
    """What a file must have to be used.

    min_seconds: length. silence_db: peak level below which audio is silent, in dB of full scale; None: silence is fine.
    channels: what its channels must turn into; None: anything.
    """

    min_seconds: float = 0.02
    silence_db: float | None = -60.0
    channels: int | None = None

    def silent(self, peak: float) -> bool:
        return self.silence_db is not None and peak < 10 ** (self.silence_db / 20)


@dataclass(frozen=True, slots=True)
class AudioFile:
    """A file that can be used. relpath: relative to the dataset's root, with "/"."""

    path: str
    relpath: str
    info: AudioInfo
    metadata: Metadata


@dataclass(frozen=True)
class Scan:
    """What a folder holds.

    files: usable ones, in the order of their relative paths. bad: all others, with causes.
    caption_problems: captions that cannot be used, as "file:line: cause". others: numbers of other files, by extension.
    """

    root: str
    files: tuple[AudioFile, ...]
    bad: tuple[Fault, ...]
    caption_problems: tuple[str, ...] = ()
    others: dict[str, int] = field(default_factory=dict)

    @property
    def uncaptioned(self) -> int:
        return sum("prompt" not in file.metadata for file in self.files)


def scan_folder(root: str | os.PathLike[str], limits: Limits = Limits(), *, thorough: bool = False, tags: bool = False) -> Scan:
    """Look over a folder and everything below it, except names that start with a dot.

    Args:
        thorough: read every file whole, which also finds damage in the middle.
        tags: take metadata from the tags inside files, too; what a table or a file beside them says wins.

    Raises:
        ConfigError: the folder cannot be read, or its caption table.
    """
    top = Path(root).expanduser()
    _check_folder(top)
    listing = _list(str(top))
    table = read_tables(top)
    log.info("%s: looking over %d audio files", shown(top), len(listing.audio))

    files: list[AudioFile] = []
    bad = list(listing.bad)
    caption_problems = list(table.problems)
    relpaths = sorted((os.path.relpath(path, top).replace(os.sep, "/"), path) for path in listing.audio)
    checks = in_threads(lambda pair: _look(pair[1], limits, thorough, tags, listing.sidecars), relpaths, shown(top))
    for (relpath, path), (info, cause, inside, beside, problems) in zip(relpaths, checks, strict=True):
        caption_problems += problems
        if info is None:
            bad.append(Fault(shown(path), cause))
        else:
            files.append(AudioFile(path, relpath, info, over(inside | table.entries.get(relpath, {}), beside)))
    unknown = table.entries.keys() - {relpath for relpath, _ in relpaths}
    caption_problems += [f"{shown(top)}: the caption table names {shown(name)}, which is no audio file here" for name in sorted(unknown)]
    return Scan(str(top), tuple(files), tuple(bad), tuple(caption_problems), dict(listing.others))


def report(scan: Scan) -> None:
    """Log what is wrong, once, with causes.

    Raises:
        ConfigError: nothing can be used.
    """
    root, found = shown(scan.root), len(scan.files) + len(scan.bad)
    if not scan.files:
        raise ConfigError(_nothing_usable(scan, found), root)
    if scan.bad:
        lines = [f"  {path}: {cause}" for path, cause in scan.bad]
        log.warning("%s: %d of %d files cannot be used:\n%s", root, len(scan.bad), found, shortened(lines))
    if scan.caption_problems:
        lines = [f"  {problem}" for problem in scan.caption_problems]
        log.warning("%s: %d captions cannot be used:\n%s", root, len(lines), shortened(lines))
    if 0 < scan.uncaptioned < len(scan.files):
        log.warning("%s: %d of %d files have no caption; their prompt is empty", root, scan.uncaptioned, len(scan.files))
    hours = sum(file.info.seconds for file in scan.files) / 3600
    log.info("%s: %d files, %.2f hours, %d with captions", root, len(scan.files), hours, len(scan.files) - scan.uncaptioned)


def _nothing_usable(scan: Scan, found: int) -> list[Problem]:
    if not found:
        others = ", ".join(f"{count} {extension or 'without extension'}" for extension, count in Counter(scan.others).most_common(5))
        message = f"no audio files in this folder{f'; it holds {others}' if others else ''}"
        return [Problem((), message, f"looked for {', '.join(CONTAINERS)} here and in all folders below")]
    lines = [f"{path}: {cause}" for path, cause in scan.bad[: LISTED // 4]]
    return [Problem((), "\n".join([f"none of {found} audio files can be used; the first causes:", *lines]))]


def shortened(lines: Sequence[str]) -> str:
    """The first of many lines, and how many more there are."""
    more = [f"  and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "\n".join([*lines[:LISTED], *more])


# the list of files


@dataclass
class _Listing:
    audio: list[str] = field(default_factory=list)
    bad: list[Fault] = field(default_factory=list)
    sidecars: dict[str, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)


def _check_folder(top: Path) -> None:
    try:
        with os.scandir(top):
            return
    except FileNotFoundError:
        cause = "no such folder"
    except NotADirectoryError:
        cause = "a file, not a folder of audio"
    except OSError as error:
        cause = f"cannot list the folder: {error.strerror}"
    raise ConfigError([Problem((), cause, '"path" is relative to where the program starts')], shown(top))


def _list(top: str) -> _Listing:
    """All files below `top`; a folder met twice, through a link, is read once."""
    listing, folders, met = _Listing(), [top], set()
    while folders:
        folder = folders.pop()
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
                        folders.append(entry.path)
                    else:
                        _sort_in(entry, listing)
        except OSError as error:
            listing.bad.append(Fault(shown(folder), f"cannot list the folder: {error.strerror}"))
    return listing


def _sort_in(entry: os.DirEntry[str], listing: _Listing) -> None:
    extension = os.path.splitext(entry.name)[1].lower()
    if extension not in CONTAINERS and extension not in CANNOT_READ:
        listing.others[extension] += 1
        if extension in SIDECARS:
            listing.sidecars[os.path.splitext(entry.path)[0] + extension] = entry.path
    elif not entry.is_file():
        listing.bad.append(Fault(shown(entry.path), "a broken link, or no regular file"))
    elif extension in CANNOT_READ:
        listing.bad.append(Fault(shown(entry.path), f"{extension} cannot be read; convert it, for instance to FLAC"))
    else:
        listing.audio.append(entry.path)


# one file


def _look(
    path: str, limits: Limits, thorough: bool, tags: bool, sidecars: Mapping[str, str]
) -> tuple[AudioInfo | None, str, Metadata, Metadata, list[str]]:
    """What a file holds, or why it cannot be used; its metadata, inside it and beside it, and what is wrong with them."""
    try:
        info = probe(path)
        cause = unfit(path, info, limits) or unfit_audio(path, info, limits, thorough)
    except ConfigError as error:
        cause = error.problems[0].message
    if cause:
        return None, cause, {}, {}, []
    inside, damage = read_tags(path) if tags else ({}, [])
    beside, problems = read_sidecars(path, sidecars)
    return info, "", inside, beside, damage + problems


def unfit(path: str, info: AudioInfo, limits: Limits) -> str:
    """Why a file cannot be used, by its header; nothing where it can."""
    extension = os.path.splitext(path)[1].lower()
    if info.container not in CONTAINERS[extension]:
        return f"wrong extension: it holds {info.container} ({info.codec})"
    if info.seconds < limits.min_seconds:
        return f"too short: {info.frames} samples, {info.seconds:.3f} s of at least {limits.min_seconds} s"
    if limits.channels and not can_make(limits.channels, info.channels):
        return f"{info.channels} channels, of which {limits.channels} cannot be made"
    return ""


def unfit_audio(path: str, info: AudioInfo, limits: Limits, thorough: bool) -> str:
    """Why a file cannot be used, by its audio: read here and there; all of it while everything so far is silent."""
    here_and_there = [(0, info.frames)]
    if info.frames > WHOLE:
        middle, last = info.frames // 2, info.frames - STRETCH
        here_and_there = [(0, STRETCH), (middle, middle + STRETCH), (last, info.frames)]
    peaks = [_peak(path, info, start, stop) for start, stop in here_and_there]
    blocks = range(0, info.frames, BLOCK) if info.frames > WHOLE else ()
    for start in blocks:
        if not thorough and not limits.silent(max(peaks)):
            break
        peaks.append(_peak(path, info, start, min(start + BLOCK, info.frames)))
    return f"silent: no sample above {limits.silence_db:g} dB of full scale" if limits.silent(max(peaks)) else ""


def _peak(path: str, info: AudioInfo, start: int, stop: int) -> float:
    """Raises ConfigError where the audio cannot be decoded or is not finite."""
    audio = read_part(path, info, info.sample_rate, start, stop)
    peak = peak_level(audio)
    if not math.isfinite(peak):
        first = int((~audio.isfinite()).any(0).nonzero()[0]) + start
        raise ConfigError(f"NaN or infinite samples, the first at {first / info.sample_rate:.2f} s", shown(path))
    return peak


def in_threads(work: Callable[[_T], _R], items: Sequence[_T], what: str) -> Iterator[_R]:
    """What `work` makes of `items`, in their order, with a line of progress every few seconds."""
    started = told = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        results: Iterable[_R] = pool.map(work, items)
        for done, result in enumerate(results, 1):
            now = time.monotonic()
            if now - told > PROGRESS_S:
                told, left = now, (now - started) / done * (len(items) - done)
                log.info("%s: %d of %d files looked over, about %.0f s left", what, done, len(items), left)
            yield result
