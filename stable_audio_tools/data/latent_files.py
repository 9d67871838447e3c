"""Folders of upstream's layout: a `.npy` file (C, T) of each clip's latents, and a `.json` file of metadata beside it.

Nothing in a file is unpickled. The metadata's `padding_mask` has a number for each frame, 1 where it holds audio. A `filelist.txt` at
the top names the files to read, one a line, in place of all there are; `details.json` says how they were made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stable_audio_tools.audio.io import shown
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.latent_folder import LatentFacts, LatentFolder, NotServableError
from stable_audio_tools.data.types import Fault

FILE_LIST, DETAILS = "filelist.txt", "details.json"
FLOATS, INTEGERS = ("e", "f", "d"), "iu"


class NpyHeader(NamedTuple):
    """channels, frames: the array's shape. tokens: it holds integers."""

    channels: int
    frames: int
    tokens: bool


@dataclass(frozen=True)
class LatentFiles(LatentFolder):
    """The files, in the order of their relative paths."""

    paths: tuple[str, ...] = ()

    def name(self, item: int) -> str:
        return shown(self.paths[item])

    def metadata(self, item: int) -> Mapping[str, Any]:
        try:
            document = _sidecar(self.paths[item])
        except ValueError as error:
            raise NotServableError(str(error)) from None
        return {name: value for name, value in document.items() if name != "padding_mask"} | {"latent_filename": self.paths[item]}

    def read(self, item: int, start: int, stop: int) -> Tensor:
        try:
            whole = np.load(self.paths[item], mmap_mode="r", allow_pickle=False)
            part = np.ascontiguousarray(whole[:, start:stop])
        except (OSError, ValueError, EOFError) as error:
            raise NotServableError(f"cannot be read: {error}") from None
        return latent_tensor(part, self.facts.tokens)


def latent_tensor(stored: np.ndarray, tokens: bool) -> Tensor:
    """Numbers as `LatentFolder.read` gives them. Raises NotServableError where they are not finite."""
    if tokens:
        return torch.from_numpy(stored.astype(np.int64))
    if not np.isfinite(stored).all():
        raise NotServableError("not finite")
    return torch.from_numpy(stored.astype(np.float32))


def open_latent_files(root: Path, extension: str) -> LatentFiles:
    """Look over a folder; headers and metadata are read, and no latents.

    Raises:
        ConfigError: the folder cannot be read, or its list of files.
    """
    listed = _listed(root) if (root / FILE_LIST).is_file() else _found(root, extension)
    paths: list[str] = []
    headers: list[NpyHeader] = []
    valid, seconds = [], []
    bad: list[Fault] = []
    for path in listed:
        try:
            header, document = _header(path), _sidecar(path)
            if headers and (header.channels, header.tokens) != (headers[0].channels, headers[0].tokens):
                what = f"{header.channels} channels of {'tokens' if header.tokens else 'numbers'}"
                raise ValueError(f"{what}, where {shown(paths[0])} has {headers[0].channels}")
            real = valid_frames(document.get("padding_mask"), header.frames)
        except ValueError as error:
            bad.append(Fault(shown(path), str(error)))
            continue
        paths.append(path)
        headers.append(header)
        valid.append(real)
        seconds.append(document.get("seconds_total"))
    first = headers[0] if headers else NpyHeader(0, 0, False)
    facts = LatentFacts(first.channels, first.tokens, **_made_how(root))
    frames = tuple(header.frames for header in headers)
    return LatentFiles(str(root), facts, frames, tuple(valid), tuple(seconds), tuple(bad), tuple(paths))


def _found(root: Path, extension: str) -> list[str]:
    ending = f".{extension.removeprefix('.')}"
    found = []
    try:
        with os.scandir(root):
            pass
    except OSError as error:
        fix = '"path" is relative to where the program starts'
        raise ConfigError([Problem((), f"cannot list the folder: {error.strerror}", fix)], shown(str(root))) from None
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(folder, name) for name in names if name.endswith(ending) and not name.startswith(".")]
    return sorted(found)


def _listed(root: Path) -> list[str]:
    """The files that the list names, which lie in the folder."""
    path = root / FILE_LIST
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", str(path)) from None
    top = root.resolve()
    outside = [(line, name) for line, name in enumerate(names, 1) if name and top not in (root / name).resolve().parents]
    if outside:
        line, name = outside[0]
        raise ConfigError([Problem((), f"line {line} names a file outside of the folder", "name files in it", name)], str(path))
    return [os.path.join(root, name) for name in names if name]


def _header(path: str) -> NpyHeader:
    """Raises ValueError where the file is no whole two-dimensional array of numbers."""
    try:
        with open(path, "rb") as file:
            return npy_header(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise ValueError(f"no NumPy array: {error.strerror}") from None


def npy_header(file: BinaryIO, size: int) -> NpyHeader:
    """What the start of a file of `size` bytes says. Raises ValueError where it is no whole two-dimensional array of numbers."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except (ValueError, EOFError) as error:
        raise ValueError(f"no NumPy array: {error}") from None
    there = size - file.tell()
    if len(shape) != 2 or 0 in shape or (dtype.char not in FLOATS and dtype.kind not in INTEGERS):
        raise ValueError(f"{dtype} of shape {shape}; expected numbers of shape (channels, frames)")
    needed = shape[0] * shape[1] * dtype.itemsize
    if there < needed:
        raise ValueError(f"cut off: {there} of {needed} bytes are there")
    return NpyHeader(*shape, dtype.kind in INTEGERS)


def _sidecar(path: str) -> dict[str, Any]:
    """Raises ValueError where the metadata beside a file cannot be read."""
    beside = os.path.splitext(path)[0] + ".json"
    try:
        with open(beside, encoding="utf-8") as file:
            document = json.load(file)
    except OSError as error:
        raise ValueError(f"its metadata {shown(beside)} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"its metadata {shown(beside)} are no JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"its metadata {shown(beside)} are no JSON object")
    return document


def valid_frames(mask: Any, frames: int) -> int:
    """Frames up to the last one that a stored mask calls real; all without a mask.

    Raises:
        ValueError: the mask is no list of one number a frame, or has no real frame.
    """
    if mask is None:
        return frames
    mask = mask[0] if isinstance(mask, list) and len(mask) == 1 and isinstance(mask[0], list) else mask
    if not isinstance(mask, list) or len(mask) != frames or not all(isinstance(value, int | float) for value in mask):
        raise ValueError(f"its padding_mask is no list of {frames} numbers, one a frame")
    real = [number for number, value in enumerate(mask, 1) if value]
    if not real:
        raise ValueError("its padding_mask calls no frame real")
    return real[-1]


def _made_how(root: Path) -> dict[str, Any]:
    """What `details.json` says about the encoder, if it is there."""
    try:
        document = json.loads((root / DETAILS).read_text(encoding="utf-8"))
        config, arguments = document["model_config"], document.get("args") or {}
        body = config["model"]
        ratio = body.get("downsampling_ratio") or body["pretransform"]["config"]["downsampling_ratio"]
        made = {"samples_per_frame": int(ratio), "sample_rate": int(config["sample_rate"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {**made, "encoder": str(arguments.get("ckpt_path") or "the encoder of its details.json")}
