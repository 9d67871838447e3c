"""What was found in the files of a folder, kept from one run to the next.

It stands beside the data as `.stable-audio-tools-scan`, or, where that cannot be written, below `$XDG_CACHE_HOME` or `~/.cache`.
A file is looked at again when its size, its time of change or its number on the disk is another one, or that of a file of
metadata beside it. The cache is JSON with a checksum, which appears whole or not at all; one that is damaged, or that another
version wrote, counts as none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stable_audio_tools.audio.io import AudioInfo, shown
from stable_audio_tools.data.findings import Finding, Sound
from stable_audio_tools.data.listing import Mark
from stable_audio_tools.data.range_cache import default_folder, write_whole

log = logging.getLogger(__name__)

NAME = ".stable-audio-tools-scan"
PACKAGE = Path(__file__).parents[1]
READERS = (
    *("audio/io.py", "audio/pcm.py", "audio/codec.py", "audio/containers.py"),
    *("data/captions.py", "data/tags.py", "data/findings.py", "data/scan_cache.py"),
)

Findings = dict[str, tuple[Mark, Finding]]  # by relative path


@dataclass(frozen=True)
class ScanCache:
    """The cache of the folder `top`. tags: whether what was found includes the tags inside files."""

    top: str
    tags: bool

    def read(self) -> Findings:
        """What is kept; nothing where there is no cache that can be used."""
        for path in self._places():
            try:
                content = path.read_bytes()
            except OSError:
                continue
            try:
                return self._unpacked(content)
            except ValueError as error:
                log.info("%s: all files are looked at anew, since %s %s", shown(self.top), shown(path), error)
        return {}

    def write(self, findings: Findings) -> None:
        """Keep this in place of what is kept; where that cannot be done, say so and go on."""
        try:
            content = self._packed(findings)
        except RecursionError:
            log.info("%s: what was found is not kept: metadata of a file are nested too deep", shown(self.top))
            return
        causes = []
        for path in self._places():
            try:
                write_whole(path, content)
                path.chmod(0o644)  # others who read the data read this, too
                return
            except OSError as error:
                causes.append(f"{shown(path)}: {error.strerror or error}")
        log.info("%s: what was found is not kept: %s", shown(self.top), "; ".join(causes))

    def _places(self) -> tuple[Path, Path]:
        top = os.path.realpath(self.top)
        elsewhere = hashlib.blake2b(os.fsencode(top), digest_size=16).hexdigest()
        return Path(top, NAME), default_folder().parent / "scans" / elsewhere

    def _packed(self, findings: Findings) -> bytes:
        rows = json.dumps([(name, mark, *finding) for name, (mark, finding) in findings.items()]).encode()
        return json.dumps({"form": self._form(), "checksum": zlib.crc32(rows)}).encode() + b"\n" + rows

    def _unpacked(self, content: bytes) -> Findings:
        """Raises ValueError, which says what is wrong with the cache."""
        head, _, rows = content.partition(b"\n")
        try:
            said = json.loads(head)
            if said["form"] != self._form():
                raise ValueError("is from another version, or for other settings")
            if said["checksum"] != zlib.crc32(rows):
                raise ValueError("is damaged")
            return {name: (tuple(mark), _finding(*rest)) for name, mark, *rest in json.loads(rows)}
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, RecursionError):
            raise ValueError("is damaged") from None

    def _form(self) -> dict[str, Any]:
        """What must agree for a cache to be used."""
        return {"readers": _readers(), "tags": self.tags}


@cache
def _readers() -> str:
    """A hash of the code that decides what is found, so that no change of it can be forgotten."""
    digest = hashlib.blake2b(digest_size=16)
    for name in READERS:
        digest.update((PACKAGE / name).read_bytes())
    return digest.hexdigest()


def _finding(info: Any, damage: str, sound: Any, inside: Any, beside: Any, problems: Any) -> Finding:
    return Finding(AudioInfo(*info) if info else None, damage, Sound(*sound), inside, beside, tuple(problems))
