"""Bytes that were fetched from elsewhere, kept on this machine: one folder for all processes, bounded in size.

An entry is a file that appears whole or not at all, named by a hash of what it holds. Processes need no lock: two that
fetch the same thing write the same bytes, and an entry that another process drops is fetched again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

SHARE = 256  # of the limit: what a process writes before it looks at the whole folder again, so that many overshoot little
KEPT = 0.9  # of the limit: what is left when the oldest entries are dropped
PART = ".part"


def default_folder() -> Path:
    """Where programs keep what they can make again: `$XDG_CACHE_HOME`, or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "stable-audio-tools" / "shards"


class RangeCache:
    """Entries by name; those that were used longest ago are dropped first.

    Args:
        folder: made at the first entry. limit: bytes of all entries together; 0 keeps nothing.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self._written = limit  # since the last look; so that the first entry looks
        self._broken = False

    def get(self, *name: str | int) -> bytes | None:
        path = self._path(name)
        try:
            content = path.read_bytes()
            os.utime(path)  # its last use
        except OSError:
            return None
        return content

    def put(self, content: bytes, *name: str | int) -> None:
        """Keep `content`, unless it is more than the limit; a folder that cannot be written is told once and then left alone."""
        if len(content) > self.limit * KEPT or self._broken:
            return
        try:
            write_whole(self._path(name), content)
        except OSError as error:
            self._broken = True
            log.warning("%s: nothing is kept here, since it cannot be written: %s", self.folder, error.strerror or error)
            return
        self._written += len(content)
        if self._written > self.limit / SHARE:
            self._written = 0
            self._drop_oldest()

    def _path(self, name: tuple[str | int, ...]) -> Path:
        digest = hashlib.blake2b("\0".join(map(str, name)).encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()
        return self.folder / digest[:2] / digest

    def _drop_oldest(self) -> None:
        entries = _entries(self.folder)
        total = sum(size for _, size, _ in entries)
        if total <= self.limit:
            return
        for _, size, path in sorted(entries):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass  # another process was first
            except OSError as error:
                log.warning("%s: cannot be dropped from the cache: %s", path, error.strerror)
                continue
            total -= size
            if total <= self.limit * KEPT:
                return


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is whole. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(PART, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _entries(folder: Path) -> list[tuple[float, int, str]]:
    """(time of last use, size, path) of all there are, parts of a process that was killed included."""
    found = []
    for subfolder in _scan(folder):
        for entry in _scan(Path(subfolder.path)) if subfolder.is_dir() else ():
            try:
                status = entry.stat()
            except OSError:
                continue
            found.append((status.st_mtime, status.st_size, entry.path))
    return found


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
