"""The index of tar shards: where each item's bytes are, and what the files beside it say, so that items are reached in any order.

An item is a member with audio (or latents); text and JSON members of the same name, up to the last dot or up to the first
one of the file's name, describe it. Members are chosen by their extensions, out of short lists: nothing else in a shard is
ever read, and nothing in it is run. An index is made in one pass over the headers and kept on this machine.
"""

from __future__ import annotations

import json
import logging
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from stable_audio_tools.audio.io import CANNOT_READ, CONTAINERS, shown
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.captions import SIDECARS, MalformedError, Metadata, over, sidecar_metadata
from stable_audio_tools.data.latent_folder import NotServableError
from stable_audio_tools.data.objects import GoneError, Shard, Store
from stable_audio_tools.data.range_cache import RangeCache
from stable_audio_tools.data.scan import shortened
from stable_audio_tools.data.tars import HEADER, Blocks, Member, members, same_member
from stable_audio_tools.data.texts import Texts
from stable_audio_tools.data.types import Fault

log = logging.getLogger(__name__)

VERSION = 1  # of the index's form
THREADS = 8  # shards looked over at once, chosen
REQUESTS = 16  # items of a batch that a process fetches at once, chosen
LARGEST_SIDECAR = 1 << 20  # bytes of a text or JSON member, chosen
LARGEST_ITEM = 1 << 31  # bytes of audio, which is read whole; chosen


class Item(NamedTuple):
    """One item.

    number: in its place. shard: it lies in. member: its bytes there. metadata: what the members beside it say.
    facts: what else the index holds.
    """

    number: int
    shard: Shard
    member: Member
    metadata: Metadata
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """For messages, and the metadata key `path`."""
        return f"{shown(self.shard.url)}/{shown(self.member.name)}"


@dataclass
class ShardIndex:
    """What one shard holds.

    lines: of its items, as JSON. bad: members that cannot be used, with causes. caption_problems: text that cannot be used.
    others: numbers of members that are not chosen, by extension. captioned: items with a caption.
    """

    lines: list[bytes] = field(default_factory=list)
    bad: list[Fault] = field(default_factory=list)
    caption_problems: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    captioned: int = 0

    def to_bytes(self) -> bytes:
        """The last line says how many there are before it."""
        rest = {
            "items": len(self.lines),
            "bad": self.bad,
            "caption_problems": self.caption_problems,
            "others": self.others,
            "captioned": self.captioned,
        }
        return b"".join(line + b"\n" for line in [*self.lines, json.dumps(rest).encode()])

    @classmethod
    def from_bytes(cls, content: bytes) -> ShardIndex:
        """Raises ValueError where the content is not what `to_bytes` made."""
        *lines, last = content.splitlines()
        rest = json.loads(last)
        if not isinstance(rest, dict) or rest.get("items") != len(lines):
            raise ValueError("lines are missing")
        try:
            bad = [Fault(*fault) for fault in rest["bad"]]
            return cls(lines, bad, list(rest["caption_problems"]), Counter(rest["others"]), int(rest["captioned"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an index: {error}") from None


@dataclass(frozen=True)
class Kind:
    """What items are.

    extensions: of the members that are items. head: bytes at the start of each that `facts` gets.
    facts: what the index is to hold about an item, from its member, its head and its metadata, from which it may take;
        raises NotServableError.
    """

    name: str
    extensions: tuple[str, ...]
    head: int
    facts: Callable[[Member, bytes, Metadata], dict[str, Any]]


AUDIO = Kind("audio", tuple(CONTAINERS), 0, lambda member, head, metadata: {})


@dataclass(frozen=True)
class Shards:
    """The items of all shards of one place, in the order of the shards' names and, in each, of their own.

    firsts: number of the first item of each shard, and of all items at the end.
    lines: of the index, one an item. held: bytes of items that were fetched ahead, by their numbers.
    """

    store: Store
    shards: tuple[Shard, ...]
    firsts: tuple[int, ...]
    lines: Texts
    bad: tuple[Fault, ...]
    caption_problems: tuple[str, ...]
    others: dict[str, int]
    captioned: int
    held: dict[int, memoryview] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.firsts[-1]

    def item(self, index: int) -> Item:
        entry = json.loads(self.lines.text(index))
        shard = self.shards[bisect_right(self.firsts, index) - 1]
        return Item(index, shard, Member(*entry["member"]), entry["metadata"], entry["facts"])

    def content(self, item: Item) -> memoryview:
        """All bytes of an item.

        Raises:
            NotServableError: they are gone, or others are in their place.
            ConfigError: the place does not answer.
        """
        held = self.held.pop(item.number, None)
        if held is not None:
            return held
        member = item.member
        if member.size > LARGEST_ITEM:
            raise NotServableError(f"{member.size} bytes, which is more than the {LARGEST_ITEM} that are read at once")
        try:
            content = self.store.kept(item.shard, member.start - HEADER, member.start + member.size)
        except GoneError as error:
            raise NotServableError(str(error)) from None
        if not same_member(content[:HEADER], member.mark):
            raise NotServableError("the tar file is another one than when it was first looked at")
        return memoryview(content)[HEADER:]

    def ahead(self, numbers: Sequence[int]) -> None:
        """Fetch items that are asked for next, all at once where each takes a request.

        Raises:
            ConfigError: their place does not answer.
        """
        self.held.clear()
        if not self.store.remote or len(numbers) < 2:
            return
        items = [self.item(number) for number in dict.fromkeys(numbers)]
        with ThreadPoolExecutor(REQUESTS) as pool:
            found = list(pool.map(self._content_if_servable, items))
        self.held.update({item.number: content for item, content in zip(items, found, strict=True) if content is not None})

    def _content_if_servable(self, item: Item) -> memoryview | None:
        try:
            return self.content(item)
        except NotServableError:
            return None  # which is told when it is asked for


def open_shards(store: Store, kind: Kind, cache: RangeCache) -> Shards:
    """Find the shards and read their indices, or make them.

    Args:
        cache: of indices.

    Raises:
        ConfigError: there are no shards, or they cannot be read.
    """
    listing = store.listing()
    log.info("%s: looking over %d tar files", shown(store.root), len(listing.shards))
    with ThreadPoolExecutor(THREADS) as pool:
        indices = list(pool.map(lambda shard: _index(store, shard, kind, cache), listing.shards))
    return Shards(
        store,
        tuple(listing.shards),
        (0, *accumulate(len(index.lines) for index in indices)),
        Texts.of(line for index in indices for line in index.lines),
        (*listing.bad, *(fault for index in indices for fault in index.bad)),
        tuple(problem for index in indices for problem in index.caption_problems),
        dict(sum((index.others for index in indices), listing.others)),
        sum(index.captioned for index in indices),
    )


def report(shards: Shards) -> None:
    """Log what is wrong, once, with causes.

    Raises:
        ConfigError: nothing can be used.
    """
    root, found = shown(shards.store.root), len(shards) + len(shards.bad)
    lines = [f"  {path}: {cause}" for path, cause in shards.bad]
    if not len(shards):
        others = ", ".join(f"{count} {extension or 'without extension'}" for extension, count in Counter(shards.others).most_common(5))
        message = f"nothing in {len(shards.shards)} tar files can be used{f'; they hold {others}' if others else ''}"
        raise ConfigError(
            [Problem((), "\n".join([message, *filter(None, [shortened(lines)])]), "items are files of audio, or .npy with pre_encoded")],
            root,
        )
    if lines:
        log.warning("%s: %d of %d items and tar files cannot be used:\n%s", root, len(lines), found, shortened(lines))
    if shards.caption_problems:
        problems = [f"  {problem}" for problem in shards.caption_problems]
        log.warning("%s: %d captions cannot be used:\n%s", root, len(problems), shortened(problems))
    log.info("%s: %d items in %d tar files, %d with captions", root, len(shards), len(shards.shards), shards.captioned)


def _index(store: Store, shard: Shard, kind: Kind, cache: RangeCache) -> ShardIndex:
    name = ("index", VERSION, kind.name, shard.url, shard.version, shard.size)
    kept = cache.get(*name)
    if kept is not None:
        try:
            return ShardIndex.from_bytes(kept)
        except ValueError as error:
            log.info("%s: its index is made again, since the one that was kept is damaged: %s", shown(shard.url), error)
    index = ShardIndex()
    try:
        _look_over(store, shard, kind, index)
    except GoneError as error:
        index.bad.append(Fault(shown(shard.url), str(error)))
        return index
    cache.put(index.to_bytes(), *name)
    return index


def _look_over(store: Store, shard: Shard, kind: Kind, index: ShardIndex) -> None:
    source = Blocks(lambda start, stop: store.read(shard, start, stop), shard.size)
    items: list[tuple[Member, bytes]] = []
    sidecars: dict[str, bytes] = {}
    for member in members(source, index.bad, shard.url):
        stem, extension = os.path.splitext(member.name)
        extension = extension.lower()
        if os.path.basename(member.name).startswith("."):  # also the "._*" files that macOS leaves
            continue
        if extension in kind.extensions:
            items.append((member, source.at(member.start, member.start + min(kind.head, member.size))))
        elif extension in SIDECARS and member.size <= LARGEST_SIDECAR:
            sidecars[stem + extension] = source.at(member.start, member.start + member.size)
        elif cause := _left_out(extension):
            index.bad.append(Fault(f"{shown(shard.url)}/{shown(member.name)}", cause))
        else:
            index.others[extension] += 1
    for member, head in items:
        metadata = _beside(shard, member, sidecars, index.caption_problems)
        try:
            entry = {"member": member, "facts": kind.facts(member, head, metadata), "metadata": metadata}
        except NotServableError as error:
            index.bad.append(Fault(f"{shown(shard.url)}/{shown(member.name)}", str(error)))
            continue
        index.captioned += "prompt" in metadata
        index.lines.append(json.dumps(entry).encode())


def _left_out(extension: str) -> str:
    if extension in SIDECARS:
        return f"more than {LARGEST_SIDECAR} bytes, which is no description"
    return f"{extension} cannot be read; convert it, for instance to FLAC" if extension in CANNOT_READ else ""


def _beside(shard: Shard, member: Member, sidecars: dict[str, bytes], problems: list[str]) -> Metadata:
    """What the text and JSON members beside an item say; those with all of its name win."""
    metadata: Metadata = {}
    for stem in dict.fromkeys((_key(member.name), os.path.splitext(member.name)[0])):
        for extension in SIDECARS:
            if (content := sidecars.get(stem + extension)) is None:
                continue
            try:
                metadata = over(metadata, sidecar_metadata(extension, content))
            except MalformedError as error:
                problems.append(f"{shown(shard.url)}/{shown(stem + extension)}:{error.line}: {error}")
            except UnicodeDecodeError as error:
                problems.append(f"{shown(shard.url)}/{shown(stem + extension)}: not text in UTF-8: byte {error.start} is no text")
    return metadata


def _key(name: str) -> str:
    """A name up to the first dot of its last part, which is what the format calls a sample's key."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]
