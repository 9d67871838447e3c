"""Files that are whole or not there: written under a temporary name beside the target, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

MARK = ".tmp-"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # a file system that has none


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open `<path>.tmp-<pid>` for writing; it becomes `path` when the block ends, and is removed when the block fails.

    It lies in the target's folder, since a rename is atomic only within one file system. The data are on the disk before the
    name is. The file is locked while it is being written, which is how `remove_stale` knows a leftover.

    Raises:
        OSError: no space, no permission and the like; `path` is as it was before.
    """
    partial = path.with_name(f"{path.name}{MARK}{os.getpid()}")
    file = open(partial, "w+b")  # noqa: SIM115  closed below, on each way out at another moment
    try:
        _lock(file)
        yield file
        file.flush()
        os.fsync(file.fileno())
        if sys.platform == "win32":  # which renames no open file
            file.close()
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # what is buffered has no place to go any more
            file.close()
        partial.unlink(missing_ok=True)
        raise
    file.close()
    _sync_folder(path.parent)


def remove_stale(folder: Path) -> list[Path]:
    """Delete what writers that were killed left in `folder`; return what was deleted. Files being written now are locked and stay."""
    removed = []
    for partial in sorted(folder.glob(f"*{MARK}*")):
        try:
            with open(partial, "r+b") as file:
                if _lock(file):
                    partial.unlink()
                    removed.append(partial)
                    log.info("removed %s, left by a writer that was stopped", partial)
                else:
                    log.warning("%s may be left by a writer that was stopped: this file system cannot tell, so it stays", partial)
        except OSError as error:
            log.debug("%s stays: %s", partial, error)  # being written, or gone meanwhile
    return removed


def _lock(file: BinaryIO) -> bool:
    """Lock `file` until it is closed; False where the file system, or Windows, has no such locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; Windows opens no folders, and needs none."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_LOCKS:  # some network file systems cannot, and rename durably anyway
            raise
    finally:
        os.close(descriptor)
