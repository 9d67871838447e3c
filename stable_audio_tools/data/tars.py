"""What is in a tar file: regular members with names that can be trusted, and why others are left out.

Only headers are read, in blocks, so that a shard in a bucket costs one request for each large member, and one for many
small ones. What stands behind a damaged header is found again by the next good one.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from stable_audio_tools.audio.io import shown
from stable_audio_tools.data.types import Fault

HEADER = tarfile.BLOCKSIZE  # bytes
READ_AHEAD = 1 << 18  # bytes asked for at once, chosen: a request takes as long as the transfer of about that much
LARGEST_HEADER = 1 << 20  # bytes of a long name and other attributes, chosen; a larger one is an attack or damage
LINKS = {tarfile.LNKTYPE: "a hard link", tarfile.SYMTYPE: "a symbolic link"}
DEVICES = {tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a pipe"}


class Member(NamedTuple):
    """A file of a tar file. start, size: its content, in bytes. mark: of its header, to know it again."""

    name: str
    start: int
    size: int
    mark: int


class DamagedError(Exception):
    """Why a header cannot be read."""


def members(source: Blocks, bad: list[Fault], where: str) -> Iterator[Member]:
    """The members of a tar file, in its order.

    Args:
        source: the tar file. Between two members, the content of the first is cheap to read from it if it is small.
        bad: gets what is left out, and where the file is damaged or cut.
        where: the tar file's name, for `bad`.
    """
    size = source.size
    if cause := _no_tar(source.at(0, HEADER)):
        bad.append(Fault(shown(where), cause))
        return
    end, whole, found = 0, True, 0
    try:
        archive = tarfile.TarFile(fileobj=source, ignore_zeros=True)  # which also goes on after a damaged header
        while (entry := archive.next()) is not None:
            whole = whole and (entry.offset == end or _no_member(source, end))
            archive.members = []  # type: ignore[attr-defined]  # which would hold all of them
            end, found = archive.offset, found + 1
            if cause := _unusable(entry, size):
                bad.append(Fault(f"{shown(where)}/{shown(entry.name)}", cause))
            elif entry.isreg():
                mark = zlib.crc32(source.at(entry.offset_data - HEADER, entry.offset_data))
                yield Member(entry.name, entry.offset_data, entry.size, mark)
            if end > size:
                return  # cut, which is said above
    except (tarfile.TarError, DamagedError, ValueError, OverflowError) as error:
        bad.append(Fault(shown(where), f"damaged after {found} members, at byte {archive.offset}: {error}"))
        return
    if end >= size:
        bad.append(Fault(shown(where), f"no end mark after {found} members: the tar file may be cut"))
    elif not (whole and _no_member(source, end)):
        bad.append(Fault(shown(where), f"damaged between its members; {found} were found"))


def same_member(header: bytes, mark: int) -> bool:
    """Whether the bytes before a member's content are the header that was seen first."""
    return zlib.crc32(header) == mark


def _no_tar(block: bytes) -> str:
    """Why a file that starts with `block` is none."""
    try:
        if any(block):
            tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
    except tarfile.TarError as error:
        return f"no tar file: {error}"
    return "" if block else "the file is empty (0 bytes)"


def _no_member(source: Blocks, offset: int) -> bool:
    """Whether the end mark, a block of zeros, stands here, or a header for all that follows."""
    block = source.at(offset, offset + HEADER)
    return not any(block) or block[156:157] == tarfile.XGLTYPE


def _unusable(entry: tarfile.TarInfo, size: int) -> str:
    if entry.isdir():
        return ""
    if kind := LINKS.get(entry.type) or DEVICES.get(entry.type):
        return f"{kind}, which is not followed"
    if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or entry.sparse:
        return "a sparse file, or of a kind that is not known"
    if entry.name.startswith(("/", "\\")) or ".." in entry.name.replace("\\", "/").split("/") or entry.name[1:2] == ":":
        return "a name that leads out of the tar file"
    if entry.size < 0 or entry.offset_data + entry.size > size:
        return f"the tar file ends within it, at byte {size}: it is cut"
    return ""


class Blocks(io.RawIOBase):
    """A file by its ranges, for readers that want small pieces close behind each other, as tarfile does.

    Args:
        read: gives bytes [start, stop). size: bytes of the file.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int):
        self._read, self.size, self._place = read, size, 0
        self._start, self._block = 0, b""

    def at(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), fewer at the end."""
        stop = min(stop, self.size)
        if start >= stop:
            return b""
        if not (self._start <= start and stop <= self._start + len(self._block)):
            until = min(max(stop, start + READ_AHEAD), self.size)
            self._start, self._block = start, self._read(start, until)
        return self._block[start - self._start : stop - self._start]

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_HEADER:
            raise DamagedError(f"a header of {size} bytes")
        found = self.at(self._place, self._place + size)
        self._place += len(found)
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < 0:
            raise DamagedError(f"a header points to byte {offset}")
        self._place = offset
        return offset

    def tell(self) -> int:
        return self._place

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True
