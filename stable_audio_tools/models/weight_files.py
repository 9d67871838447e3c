"""Reading weight files of any origin: what kind of file it is, whether it is whole, and what is in it.

A file is recognised by its first bytes, never by its name, and nothing in it is executed: safetensors, or torch's format through
its weights-only reader. torch's archives carry a CRC-32 of each record that torch itself does not look at; here they are
verified, so that one flipped byte is noticed.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_audio_tools.configs.suggest import closest
from stable_audio_tools.models.checkpoint_error import CheckpointError, bad_file
from stable_audio_tools.models.safetensors_file import COPY_AGAIN, looks_like_safetensors, read_header, read_safetensors

ZIP = b"PK\x03\x04"
OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch before 1.6: the pickled number 0x1950a86a20f9469cfc6c
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
EXPECTED = "name a safetensors file or a torch checkpoint"
OTHER_FILES = (  # what people name by mistake: first bytes, what it is, what to do
    (rb"version https://git-lfs", "a Git LFS pointer", "fetch the weights: git lfs pull"),
    (rb"\s*<[ -~\s]+$", "a web page", "download the file itself, not the page about it"),
    (rb"\s*\{[ -~\s]+$", "a JSON text", EXPECTED),
    (rb"RIFF|fLaC|OggS|ID3", "an audio file", EXPECTED),
    (rb"\x93NUMPY", "a NumPy array", EXPECTED),
    (rb"\x1f\x8b", "a gzip archive", "unpack it first"),
    (rb"\x80[\x02-\x05]", "a Python pickle that torch did not save", EXPECTED),
)


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    content: what was saved: tensors by name for safetensors, whatever mapping torch was given otherwise.
    metadata: the header's texts by key; empty for torch files.
    """

    path: Path
    content: Mapping[str, Any]
    metadata: dict[str, str]


def read_weight_file(path: str | os.PathLike[str], *, header_only: bool = False) -> WeightFile:
    """Read a file onto the CPU.

    Args:
        header_only: only what the file says beside its tensors is wanted. `content` of safetensors is then empty, and
            checksums are not verified.

    Raises:
        CheckpointError: there is no such file, or it is damaged, unsafe or something else than weights.
    """
    path = Path(path)
    try:
        head = _head(path)
        if looks_like_safetensors(head):
            return WeightFile(path, {}, read_header(path).metadata) if header_only else WeightFile(path, *read_safetensors(path))
        return WeightFile(path, read_torch_file(path, verify=not header_only), {})
    except OSError as error:
        raise bad_file(path, f"cannot be read: {error.strerror or error}", "check its permissions") from None


def read_torch_file(path: Path, *, verify: bool = True, map_location: Any = "cpu") -> dict[str, Any]:
    """The mapping that `torch.save` wrote to `path`; its tensors are backed by the file where its format allows.

    Args:
        verify: check the checksums of an archive, which reads it once.
        map_location: as of `torch.load`.

    Raises:
        CheckpointError: the file is damaged, holds objects that only running code can rebuild, or is no mapping.
        OSError: it cannot be read.
    """
    import torch

    head = _head(path)
    if looks_like_safetensors(head):
        raise bad_file(path, "safetensors: weights alone, not what torch.save wrote", "--pretrained-ckpt-path starts from weights")
    if not head.startswith((ZIP, OLD_TORCH)):
        raise _not_weights(path, head)
    archive = head.startswith(ZIP)
    if archive:
        _check_archive(path, verify=verify)
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=archive)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001  a damaged pickle fails with whatever its bytes happen to spell
        raise _unreadable(path, error, whole=archive) from None
    if not isinstance(content, dict):
        raise bad_file(path, f"holds a {type(content).__name__}, not weights by name", EXPECTED)
    return content


def _head(path: Path) -> bytes:
    """The first bytes of a file that is there and not empty."""
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
        raise bad_file(path, "a folder, not a weight file", f"name a file in it: {', '.join(inside[:5])}" if inside else EXPECTED)
    if not path.exists():
        near = closest(path.name, [file.name for file in path.parent.glob("*") if file.suffix in WEIGHT_SUFFIXES])
        raise bad_file(path, "no such file", f"did you mean {path.parent / near}?" if near else "check the path")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise bad_file(path, "the file is empty", COPY_AGAIN)
    return head


def _check_archive(path: Path, *, verify: bool) -> None:
    """Whether a torch archive is whole and, with `verify`, each record has its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())
            parts = {name.rpartition("/")[2] for name in archive.namelist()}
            ours = stored and "data.pkl" in parts and "constants.pkl" not in parts  # the latter marks a TorchScript program
            bad = archive.testzip() if verify and ours else None
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, RuntimeError) as error:
        if "not a zip file" in str(error):  # a zip archive's index stands at its end
            raise bad_file(path, f"cut off: {path.stat().st_size:,} bytes are there, and the end is not", COPY_AGAIN) from None
        raise bad_file(path, f"damaged: {error}", COPY_AGAIN) from None
    if not ours:
        raise bad_file(path, "a zip archive, but not of tensors saved by torch.save", EXPECTED)
    if bad:
        raise bad_file(path, f"damaged: its part {bad} does not match its checksum", COPY_AGAIN)


def _unreadable(path: Path, error: Exception, *, whole: bool) -> CheckpointError:
    """What torch's refusal means; `whole` says that the file's frame is intact."""
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)", text):
        what = f"holds a Python object ({found[1]}) beside tensors; rebuilding it would run code from the file, so it is refused"
        fix = "ask its maker for safetensors; if you trust it, open it elsewhere and save its tensors alone"
        return bad_file(path, what if whole else f"damaged, or {what}", fix if whole else f"{COPY_AGAIN}, or {fix}")
    first = text.splitlines()[0] if text else "the data end too early"
    return bad_file(path, f"damaged: {type(error).__name__}: {first[:120]}", COPY_AGAIN)


def _not_weights(path: Path, head: bytes) -> CheckpointError:
    for pattern, what, fix in OTHER_FILES:
        if re.match(pattern, head):
            return bad_file(path, f"{what}, not weights", fix)
    return bad_file(path, "neither safetensors nor a torch file, or its beginning is damaged", f"{COPY_AGAIN}, or {EXPECTED}")
