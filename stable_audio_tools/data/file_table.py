"""The files of a folder in a few tensors: a hundred thousand of them take megabytes, and worker processes share these."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from stable_audio_tools.audio.io import AudioInfo
from stable_audio_tools.data.captions import Metadata
from stable_audio_tools.data.texts import Texts

NO_METADATA = b"{}"


@dataclass(frozen=True, slots=True)
class AudioFile:
    """A file that can be used. relpath: relative to the dataset's root, with "/"."""

    path: str
    relpath: str
    info: AudioInfo
    metadata: Metadata


@dataclass(frozen=True)
class FileTable(Sequence[AudioFile]):
    """Files below `root`, each made anew when it is asked for.

    names: relative paths. headers: (N, 4) int64: frames, Hz, channels and, as a number in `forms`, container and codec.
    metadata: JSON objects. captioned: how many of these have a prompt.
    """

    root: str
    names: Texts
    headers: Tensor
    forms: tuple[tuple[str, str], ...]
    metadata: Texts
    captioned: int

    @classmethod
    def of(cls, root: str, files: Iterable[tuple[str, AudioInfo, Metadata]]) -> FileTable:
        """From relative paths, headers and metadata."""
        names, headers, notes, captioned = [], [], [], 0
        forms: dict[tuple[str, str], int] = {}
        for relpath, info, metadata in files:
            names.append(os.fsencode(relpath))
            headers.append(_row(info, forms))
            notes.append(json.dumps(metadata).encode() if metadata else NO_METADATA)
            captioned += "prompt" in metadata
        rows = torch.tensor(headers, dtype=torch.int64).reshape(-1, 4)
        return cls(root, Texts.of(names), rows, tuple(forms), Texts.of(notes), captioned)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> AudioFile: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[AudioFile]: ...
    def __getitem__(self, index: int | slice) -> AudioFile | Sequence[AudioFile]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"file {index} of {len(self)}")
        index %= len(self)
        relpath = os.fsdecode(self.names.text(index))
        info = _info(self.headers[index].tolist(), self.forms)
        return AudioFile(os.path.join(self.root, relpath), relpath, info, json.loads(self.metadata.text(index)))

    def __iter__(self) -> Iterator[AudioFile]:
        texts = zip(self.names.all(), self.infos(), self.metadata.all(), strict=True)
        for name, info, metadata in texts:
            relpath = os.fsdecode(name)
            yield AudioFile(os.path.join(self.root, relpath), relpath, info, json.loads(metadata))

    def infos(self) -> Iterator[AudioInfo]:
        """What the headers say, file by file."""
        return (_info(row, self.forms) for row in self.headers.tolist())


def _row(info: AudioInfo, forms: dict[tuple[str, str], int]) -> tuple[int, int, int, int]:
    """A header as four numbers; a form that is new is added to `forms`."""
    return info.frames, info.sample_rate, info.channels, forms.setdefault((info.container, info.codec), len(forms))


def _info(row: Sequence[int], forms: Sequence[tuple[str, str]]) -> AudioInfo:
    frames, sample_rate, channels, form = row
    return AudioInfo(frames, sample_rate, channels, *forms[form])
