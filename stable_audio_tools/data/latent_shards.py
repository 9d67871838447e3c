"""Folders that `pre-encode` writes: safetensors shards of latents, an index in JSON lines beside each, and `details.json`.

    details.json          what was encoded by what, and how many items and shards that gives
    00000.safetensors     one tensor an item, by its number: (C, T), or (2 C, T), means and deviations; tokens (Q, T)
    00000.jsonl           one line an item: {"item", "frames", "valid", "metadata"}, or {"item", "fault": [path, cause]}
    probe.safetensors     what the encoder makes of a fixed signal, by which training knows it

A shard is there, whole, or not at all; its index is written before it. What is missing is therefore known from names alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.parse import read_json
from stable_audio_tools.data.latent_folder import LatentFacts, LatentFolder, NotServableError
from stable_audio_tools.data.types import Fault

FORMAT = "stable-audio-tools latents"
DETAILS, PROBE = "details.json", "probe.safetensors"
OPEN_SHARDS = 64  # kept open by a process, chosen: file handles are few, headers cost little


@dataclass(frozen=True)
class Details:
    """What `details.json` says.

    content: everything that the latents depend on; key: its hash. facts: what the items have in common.
    items: how many there are, in shards of shard_items, bad ones included.
    """

    key: str
    content: Mapping[str, Any]
    facts: LatentFacts
    items: int
    shard_items: int

    @property
    def shards(self) -> int:
        return -(-self.items // self.shard_items)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": 1, **asdict(self)}, indent=1)


def shard_path(root: Path, shard: int) -> Path:
    return root / f"{shard:05d}.safetensors"


def index_path(root: Path, shard: int) -> Path:
    return root / f"{shard:05d}.jsonl"


def tensor_name(item: int) -> str:
    return f"{item:08d}"


def is_shard_folder(root: Path) -> bool:
    """Whether `pre-encode` of this package wrote the folder."""
    path = root / DETAILS
    return path.is_file() and read_json(path)[0].get("format") == FORMAT


def read_details(root: Path) -> Details:
    """Raises ConfigError where they cannot be read, or are of a later version."""
    document, path = read_json(root / DETAILS)[0], str(root / DETAILS)
    if document.get("version") != 1:
        raise ConfigError([Problem(("version",), "expected 1", "a newer version of this program wrote it", document.get("version"))], path)
    try:
        facts = LatentFacts(**document["facts"])
        return Details(document["key"], document["content"], facts, document["items"], document["shard_items"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"damaged: {error}; run pre-encode again", path) from None


def missing_shards(root: Path, details: Details) -> list[int]:
    return [shard for shard in range(details.shards) if not shard_path(root, shard).is_file()]


@dataclass(frozen=True)
class ShardFolder(LatentFolder):
    """The items of a finished folder; the index stays on the disk, and a few numbers of each item in memory."""

    places: Tensor = field(kw_only=True)
    """(N, 4) int64: number of the item, shard, and where in the shard's index its line begins and ends."""

    def name(self, item: int) -> str:
        number, shard, *_ = self.places[item].tolist()
        return f"{shard_path(Path(self.root), shard)}, item {tensor_name(number)}"

    def metadata(self, item: int) -> Mapping[str, Any]:
        _, shard, begin, end = self.places[item].tolist()
        try:
            with index_path(Path(self.root), shard).open("rb") as file:
                file.seek(begin)
                return json.loads(file.read(end - begin))["metadata"]
        except (OSError, ValueError, KeyError) as error:
            raise NotServableError(f"its line in the index cannot be read: {error}") from None

    def read(self, item: int, start: int, stop: int) -> Tensor:
        from safetensors import SafetensorError

        number, shard, *_ = self.places[item].tolist()
        try:
            frames = _opened(str(shard_path(Path(self.root), shard))).get_slice(tensor_name(number))[:, start:stop]
        except (OSError, SafetensorError) as error:
            raise NotServableError(f"cannot be read: {error}") from None
        if self.facts.tokens:
            return frames.long()
        if not bool(frames.isfinite().all()):
            raise NotServableError("not finite")
        return frames.float()


@lru_cache(OPEN_SHARDS)
def _opened(path: str) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def open_shards(root: Path) -> ShardFolder:
    """Raises ConfigError where the folder is not finished, or damaged."""
    details = read_details(root)
    if missing := missing_shards(root, details):
        message = f"pre-encoding is not finished: {len(missing)} of {details.shards} shards are missing"
        raise ConfigError([Problem((), message, "run the same pre-encode command again; it goes on where it stopped")], str(root))
    places: list[tuple[int, int, int, int]] = []
    frames, valid, seconds = [], [], []
    bad: list[Fault] = []
    for shard in range(details.shards):
        for begin, end, entry in _lines(index_path(root, shard)):
            if "fault" in entry:
                bad.append(Fault(*entry["fault"]))
                continue
            places.append((entry["item"], shard, begin, end))
            frames.append(entry["frames"])
            valid.append(entry["valid"])
            seconds.append(entry["metadata"].get("seconds_total"))
    table = torch.tensor(places, dtype=torch.int64).reshape(-1, 4)
    return ShardFolder(str(root), details.facts, tuple(frames), tuple(valid), tuple(seconds), tuple(bad), places=table)


def _lines(path: Path) -> list[tuple[int, int, dict[str, Any]]]:
    """Where each line begins and ends, and what it says."""
    found, begin = [], 0
    try:
        with path.open("rb") as file:
            for line in file:
                found.append((begin, begin + len(line), json.loads(line)))
                begin += len(line)
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        fix = f"delete {shard_path(path.parent, int(path.stem))} and run the same pre-encode command again"
        raise ConfigError([Problem((), f"this index cannot be read: {cause}", fix)], os.fspath(path)) from None
    return found
