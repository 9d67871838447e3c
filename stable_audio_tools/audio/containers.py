"""What libsndfile does not say about a file: whether it was cut, where the last Ogg page starts, if an MP3 knows its length.

libsndfile opens a WAV, AIFF or Ogg file that was cut (a broken download, a full disk) as a shorter one without a word, and
guesses the length of an MP3 that has no table of contents.
"""

from __future__ import annotations

import os
from typing import BinaryIO, Literal, NamedTuple

STREAMED = {0, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFFF}  # data sizes that writers to a pipe leave in the header
MAX_CHUNKS = 64  # of a RIFF or AIFF file before its audio; chosen: real ones have fewer than 10
OGG_TAIL = 2 * 65307  # the largest page, twice: RFC 3533, section 6
OGG_HEADER = 27  # bytes of a page before its segment table
MP3_TAGS = (b"Xing", b"Info", b"VBRI")  # in the first frame, with the number of frames
NO_GRANULE = (1 << 64) - 1  # no packet ends on this page


class OggEnd(NamedTuple):
    """cut: the file ends inside a page. last_page_start: the frame at which the last page's audio begins."""

    cut: bool
    last_page_start: int


def missing_bytes(path: str) -> int:
    """How many bytes of audio the headers of a WAV or AIFF file promise and the file does not have; 0 for other formats."""
    with open(path, "rb") as file:
        start = file.read(12)
        if start[:4] == b"RIFF" and start[8:] == b"WAVE":
            return _missing(file, b"data", "little")
        if start[:4] == b"FORM" and start[8:] in (b"AIFF", b"AIFC"):
            return _missing(file, b"SSND", "big")
    return 0


def _missing(file: BinaryIO, wanted: bytes, order: Literal["little", "big"]) -> int:
    total = os.fstat(file.fileno()).st_size
    for _ in range(MAX_CHUNKS):
        header = file.read(8)
        if len(header) < 8:
            return 0
        size = int.from_bytes(header[4:], order)
        if header[:4] == wanted:
            return 0 if size in STREAMED else max(file.tell() + size - total, 0)
        file.seek(size + size % 2, os.SEEK_CUR)
    return 0


def ogg_end(path: str) -> OggEnd:
    """Look at the last pages of an Ogg file (RFC 3533)."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - OGG_TAIL))
        tail = file.read()
    cut, granules = False, [0]
    position = tail.find(b"OggS")
    while position >= 0:
        length = _page_length(tail, position)
        cut = not length or position + length > len(tail)
        granule = int.from_bytes(tail[position + 6 : position + 14], "little")
        granules += [granule] if granule != NO_GRANULE and not cut else []
        position = tail.find(b"OggS", position + (1 if cut else length))
    return OggEnd(cut, granules[-2] if len(granules) > 1 else 0)


def _page_length(data: bytes, position: int) -> int:
    """Bytes of the Ogg page at `position`, header included; 0 where its header is not all there."""
    segments_at = position + OGG_HEADER
    if segments_at > len(data):
        return 0
    count = data[segments_at - 1]
    if segments_at + count > len(data):
        return 0
    return OGG_HEADER + count + sum(data[segments_at : segments_at + count])


def mp3_has_length(path: str) -> bool:
    """Whether the first frame of an MP3 file says how many frames follow; without it the length is an estimate."""
    with open(path, "rb") as file:
        start = file.read(10)
        if start[:3] == b"ID3":
            file.seek(10 + sum(byte << shift for byte, shift in zip(start[6:], (21, 14, 7, 0), strict=True)))
            start = b""
        start += file.read(2048)
    return any(tag in start for tag in MP3_TAGS)
