"""Tar shards of latents: a `.npy` member (C, T) for each clip, and a `.json` member of metadata, as in folders of `data.latent_files`."""

from __future__ import annotations

import io
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from stable_audio_tools.data.captions import Metadata
from stable_audio_tools.data.latent_files import latent_tensor, npy_header, valid_frames
from stable_audio_tools.data.latent_folder import LatentFacts, LatentFolder, NotServableError
from stable_audio_tools.data.shards import Kind, Shards
from stable_audio_tools.data.tars import Member
from stable_audio_tools.data.types import Fault

HEAD = 1024  # bytes; the header of a NumPy array of two dimensions takes 128


def _facts(member: Member, head: bytes, metadata: Metadata) -> dict[str, Any]:
    """Shape and real frames; the mask, one number a frame, is not needed beside them."""
    try:
        header = npy_header(io.BytesIO(head), member.size)
        valid = valid_frames(metadata.pop("padding_mask", None), header.frames)
    except ValueError as error:
        raise NotServableError(str(error)) from None
    return {"channels": header.channels, "frames": header.frames, "tokens": header.tokens, "valid": valid}


LATENTS = Kind("latents", (".npy",), HEAD, _facts)


@dataclass(frozen=True)
class LatentTars(LatentFolder):
    """The items of the shards whose arrays are alike. numbers: of each in `shards`."""

    shards: Shards | None = None
    numbers: tuple[int, ...] = ()

    def name(self, item: int) -> str:
        return self._shards.item(self.numbers[item]).name

    def metadata(self, item: int) -> Mapping[str, Any]:
        found = self._shards.item(self.numbers[item])
        return {**found.metadata, "latent_filename": found.name}

    def read(self, item: int, start: int, stop: int) -> Tensor:
        found = self._shards.item(self.numbers[item])
        try:
            whole = np.load(io.BytesIO(self._shards.content(found)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise NotServableError(f"cannot be read: {error}") from None
        return latent_tensor(whole[:, start:stop], self.facts.tokens)

    def ahead(self, items: Sequence[int]) -> None:
        """Fetch what is read next; see `Shards.ahead`."""
        self._shards.ahead([self.numbers[item] for item in items])

    @property
    def firsts(self) -> tuple[int, ...]:
        """Number of the first item of each shard, and of all items at the end."""
        return tuple(bisect_left(self.numbers, first) for first in self._shards.firsts)

    @property
    def _shards(self) -> Shards:
        assert self.shards is not None
        return self.shards


def latent_tars(shards: Shards) -> LatentTars:
    """Shards of latents as a folder of them; arrays of another kind than the first are bad."""
    numbers, frames, valid, seconds = [], [], [], []
    bad = list(shards.bad)
    kind: tuple[int, bool] | None = None
    for number in range(len(shards)):
        item = shards.item(number)
        this = item.facts["channels"], item.facts["tokens"]
        kind = kind or this
        if this != kind:
            bad.append(Fault(item.name, f"{this[0]} channels of {'tokens' if this[1] else 'numbers'}, where others have {kind[0]}"))
            continue
        numbers.append(number)
        frames.append(item.facts["frames"])
        valid.append(item.facts["valid"])
        seconds.append(item.metadata.get("seconds_total"))
    facts = LatentFacts(*(kind or (0, False)))
    return LatentTars(shards.store.root, facts, tuple(frames), tuple(valid), tuple(seconds), tuple(bad), shards, tuple(numbers))
