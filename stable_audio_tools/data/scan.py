"""Looking over a folder of audio before training: which files there are, what they hold, and which cannot be used.

Only what is new or changed since the last time is looked at. Bad files are listed with their cause, once, and never served.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from stable_audio_tools.audio.io import CONTAINERS, AudioInfo, shown
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.captions import Metadata, over, read_tables
from stable_audio_tools.data.file_table import AudioFile, FileTable
from stable_audio_tools.data.findings import Finding, Limits, Sound, look
from stable_audio_tools.data.listing import Listing, list_folder
from stable_audio_tools.data.scan_cache import Findings, ScanCache
from stable_audio_tools.data.types import Fault

__all__ = ["AudioFile", "Limits", "Progress", "Scan", "report", "scan_folder"]

log = logging.getLogger(__name__)

PROGRESS_S = 10.0
LISTED = 20  # bad files named in the log, and causes in an error
THREADS = min(32, 4 * (os.cpu_count() or 1))
TASK = 64  # files that a thread looks at before it comes back, at most: coming back costs as much as a small file
_T = TypeVar("_T")
_R = TypeVar("_R")
Progress = Callable[[int, int], None]  # files done, of how many
USUAL = Limits()


@dataclass(frozen=True)
class Scan:
    """What a folder holds.

    files: usable ones, in the order of their relative paths. bad: all others, with causes.
    caption_problems: captions that cannot be used, as "file:line: cause". others: numbers of other files, by extension.
    sounds: of `files`, where they were read whole. silent: how many of `bad` hold nothing else.
    """

    root: str
    files: Sequence[AudioFile]
    bad: tuple[Fault, ...]
    caption_problems: tuple[str, ...] = ()
    others: dict[str, int] = field(default_factory=dict)
    sounds: tuple[Sound, ...] = ()
    silent: int = 0

    @property
    def uncaptioned(self) -> int:
        if isinstance(self.files, FileTable):
            return len(self.files) - self.files.captioned
        return sum("prompt" not in file.metadata for file in self.files)

    @property
    def hours(self) -> float:
        return sum(info.seconds for info in self.infos()) / 3600

    def infos(self) -> Iterable[AudioInfo]:
        """The headers of `files`."""
        return self.files.infos() if isinstance(self.files, FileTable) else [file.info for file in self.files]

    def described(self, describe: Callable[[str, Metadata], Metadata]) -> Scan:
        """The same files with other metadata, made of their relative paths and the present ones."""
        files = ((file.relpath, file.info, describe(file.relpath, file.metadata)) for file in self.files)
        return replace(self, files=FileTable.of(self.root, files))


def scan_folder(
    root: str | os.PathLike[str],
    limits: Limits = USUAL,
    *,
    thorough: bool = False,
    tags: bool = False,
    keep: bool = True,
    progress: Progress | None = None,
) -> Scan:
    """Look over a folder and everything below it, except names that start with a dot.

    Args:
        thorough: read every file whole, which also finds damage in the middle.
        tags: take metadata from the tags inside files, too; what a table or a file beside them says wins.
        keep: use what was found the last time, and keep what is found now; `data.scan_cache` says where.
        progress: is told how far it is; left out: the log is, every few seconds.

    Raises:
        ConfigError: the folder cannot be read, or its caption table.
    """
    with _no_garbage_collection():
        return _scanned(str(Path(root).expanduser()), limits, thorough, tags, keep, progress)


def _scanned(top: str, limits: Limits, thorough: bool, tags: bool, keep: bool, progress: Progress | None) -> Scan:
    listing = list_folder(top)
    table = read_tables(Path(top))
    findings = _found(top, listing, limits, thorough, tags, keep, progress)

    files, sounds, bad, silent = [], [], list(listing.bad), 0
    caption_problems = list(table.problems)
    for file in listing.audio:
        finding = findings[file.relpath][1]
        cause = finding.unfit(file.path, limits)
        if cause or finding.info is None:
            bad.append(Fault(shown(file.path), cause))
            silent += finding.info is not None and limits.silent(finding.sound.peak)
            continue
        caption_problems += finding.problems
        files.append((file.relpath, finding.info, over(finding.inside | table.entries.get(file.relpath, {}), finding.beside)))
        sounds.append(finding.sound)
    unknown = table.entries.keys() - findings.keys()
    caption_problems += [f"{shown(top)}: the caption table names {shown(name)}, which is no audio file here" for name in sorted(unknown)]
    heard = tuple(sounds) if thorough else ()
    return Scan(top, FileTable.of(top, files), tuple(bad), tuple(caption_problems), dict(listing.others), heard, silent)


def _found(top: str, listing: Listing, limits: Limits, thorough: bool, tags: bool, keep: bool, progress: Progress | None) -> Findings:
    """What each file holds: known from the last time, or looked at now."""
    cache = ScanCache(top, tags) if keep else None
    known = cache.read() if cache else {}
    marks = {file.relpath: listing.mark(file) for file in listing.audio}
    findings = {name: known[name] for name, mark in marks.items() if _still_true(known.get(name), mark, limits, thorough)}
    new = [file for file in listing.audio if file.relpath not in findings]
    log.info("%s: looking over %d audio files%s", shown(top), len(new), f"; {len(findings)} are known" if findings else "")
    try:
        looked = in_threads(lambda file: look(file.path, listing.sidecars, limits, thorough=thorough, tags=tags), new, shown(top), progress)
        for file, finding in zip(new, looked, strict=True):
            findings[file.relpath] = marks[file.relpath], finding
    finally:
        if cache and new:
            cache.write(findings)
    return findings


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Nothing here is circular, and looking for it would go through all objects made so far again and again, which doubles the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _still_true(known: tuple[tuple[int, ...], Finding] | None, mark: tuple[int, ...], limits: Limits, thorough: bool) -> bool:
    return known is not None and known[0] == mark and known[1].suffices(limits, thorough)


def in_threads(work: Callable[[_T], _R], items: Sequence[_T], what: str, progress: Progress | None = None) -> Iterator[_R]:
    """Results in the order of `items`; without `progress`, the log says every few seconds how far it is."""
    progress = progress or _logged(what)
    size = max(1, min(TASK, len(items) // (4 * THREADS)))
    tasks = [items[start : start + size] for start in range(0, len(items), size)]
    done = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for results in pool.map(lambda task: [work(item) for item in task], tasks):
            yield from results
            done += len(results)
            progress(done, len(items))


def _logged(what: str) -> Progress:
    """A line in the log every few seconds."""
    started = told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told > PROGRESS_S and done < total:
            told, left = now, (now - started) / done * (total - done)
            log.info("%s: %d of %d files looked over, about %.0f s left", what, done, total, left)

    return progress


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
    log.info("%s: %d files, %.2f hours, %d with captions", root, len(scan.files), scan.hours, len(scan.files) - scan.uncaptioned)


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
