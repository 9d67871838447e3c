"""Items of tar shards as files of their own, for as long as they are read, and what a look at all of them finds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stable_audio_tools.audio.io import probe, shown
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.captions import Metadata
from stable_audio_tools.data.described import DescribedItem
from stable_audio_tools.data.findings import Limits, Sound, look, unfit
from stable_audio_tools.data.latent_folder import NotServableError
from stable_audio_tools.data.scan import AudioFile, Progress, Scan, in_threads
from stable_audio_tools.data.shards import Item, Shards
from stable_audio_tools.data.types import Fault


@dataclass(frozen=True, slots=True)
class Unpacked(AudioFile):
    """An item as a file. place: where it is from."""

    place: str = ""


@contextmanager
def unpacked(item: Item, described: DescribedItem, content: memoryview, limits: Limits) -> Iterator[Unpacked]:
    """An item as a file.

    Args:
        described: what the config says about its metadata.

    Raises:
        NotServableError: it is no audio that can be used.
    """
    with _file_of(item, content) as path:
        try:
            info = probe(path)
        except ConfigError as error:
            raise NotServableError(error.problems[0].message) from None
        if cause := unfit(path, info, limits):
            raise NotServableError(cause)
        yield Unpacked(path, item.member.name, info, metadata_of(item, described), item.name)


@contextmanager
def _file_of(item: Item, content: memoryview) -> Iterator[str]:
    """A file under a name of ours, since the name in the tar file is somebody else's; its extension is one of the known ones."""
    handle, path = tempfile.mkstemp(os.path.splitext(item.member.name)[1].lower())
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        yield path
    finally:
        os.unlink(path)


def metadata_of(item: Item, described: DescribedItem) -> Metadata:
    return described.described(item.member.name, item.metadata)


def descriptions(shards: Shards, described: DescribedItem) -> Iterator[tuple[str, Metadata]]:
    """Names and metadata of all items."""
    for number in range(len(shards)):
        item = shards.item(number)
        yield item.member.name, metadata_of(item, described)


def scan_shards(shards: Shards, described: DescribedItem, limits: Limits, *, thorough: bool, progress: Progress | None) -> Scan:
    """Look over all items, as if they lay in a folder.

    Args:
        described: what the config says about their metadata. thorough: read all of each. progress: as `scan_folder` takes it.

    Raises:
        ConfigError: their place does not answer.
    """

    def one(number: int) -> tuple[AudioFile | Fault, Sound]:
        return _look(shards, shards.item(number), described, limits, thorough)

    found = [*in_threads(one, range(len(shards)), shown(shards.store.root), progress)]
    files = [(file, sound) for file, sound in found if isinstance(file, AudioFile)]
    bad = [(fault, sound) for fault, sound in found if isinstance(fault, Fault)]
    return Scan(
        shards.store.root,
        tuple(file for file, _ in files),
        (*shards.bad, *(fault for fault, _ in bad)),
        shards.caption_problems,
        shards.others,
        tuple(sound for _, sound in files) if thorough else (),
        sum(sound.whole and limits.silent(sound.peak) for _, sound in bad),
    )


def _look(shards: Shards, item: Item, described: DescribedItem, limits: Limits, thorough: bool) -> tuple[AudioFile | Fault, Sound]:
    try:
        content = shards.content(item)
    except NotServableError as error:
        return Fault(item.name, str(error)), Sound()
    with _file_of(item, content) as path:
        finding = look(path, {}, limits, thorough=thorough, tags=False)
        cause = finding.unfit(path, limits)
    if cause or finding.info is None:
        return Fault(item.name, cause), finding.sound
    return Unpacked(item.name, item.member.name, finding.info, metadata_of(item, described), item.name), finding.sound
