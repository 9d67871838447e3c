"""The safetensors format with checksums: a JSON header, then the tensors' bytes. https://github.com/huggingface/safetensors

Written here rather than by the library's `save_file`, so that the bytes stream into a file that appears whole, and so that the
header can hold what is needed to notice a damaged byte: a CRC-32 of itself and of every tensor, under the metadata key `crc32`.
Any safetensors reader reads these files, and files without that key are read without the check.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from stable_audio_tools.models.checkpoint_error import bad_file

CHECKSUM_KEY = "crc32"
MAX_HEADER = 100_000_000  # bytes; the format's own limit
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
COPY_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself.

    metadata: text by key.
    entries: `dtype`, `shape` and `data_offsets` of each tensor by name.
    start: where the tensors' bytes begin.
    """

    metadata: dict[str, str]
    entries: dict[str, dict[str, Any]]
    start: int


def write_safetensors(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `tensors` in the order the format advises: widest type first, then by name. Nothing is shared in the file.

    Raises:
        OSError: no space and the like.
        ValueError: a tensor's type has no place in the format.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if strange := [f"{name} ({tensor.dtype})" for name, tensor in plain.items() if tensor.dtype not in DTYPES]:
        raise ValueError(f"safetensors has no type for {', '.join(strange)}")
    names = sorted(plain, key=lambda name: (-plain[name].element_size(), name))
    entries, offset = {}, 0
    for name in names:
        end = offset + plain[name].nbytes
        entries[name] = {"dtype": DTYPES[plain[name].dtype], "shape": list(plain[name].shape), "data_offsets": [offset, end]}
        offset = end
    sums = {name: _tensor_crc(name, entry, _bytes(plain[name])) for name, entry in entries.items()}
    header = {"__metadata__": {**metadata, CHECKSUM_KEY: _checksums(metadata, sums)}, **entries}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in names:
        file.write(_bytes(plain[name]))


def looks_like_safetensors(head: bytes) -> bool:
    """Whether the first 9 bytes of a file are a header length and the start of its JSON."""
    return len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER


def read_header(path: Path) -> Header:
    """Read the header alone; the size of the file is checked against it.

    Raises:
        CheckpointError: the file is cut off or its header is damaged.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length)
    if len(text) < length:
        raise bad_file(path, f"cut off: {size:,} bytes are there, and the header alone has {length + 8:,}", COPY_AGAIN)
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", {})
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise bad_file(path, f"its safetensors header is damaged: {error}", COPY_AGAIN) from None
    if size < end:
        raise bad_file(path, f"cut off: {size:,} of {end:,} bytes are there", COPY_AGAIN)
    return Header(metadata, entries, 8 + length)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU and backed by the file, and the metadata; checksums are verified where the file has them.

    Raises:
        CheckpointError: the file is cut off or damaged.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise bad_file(path, f"damaged: {error}", COPY_AGAIN) from None
    _verify(path, header, tensors)
    return tensors, header.metadata


def _verify(path: Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
    if CHECKSUM_KEY not in header.metadata:
        return
    given = {key: value for key, value in header.metadata.items() if key != CHECKSUM_KEY}
    sums = {name: _tensor_crc(name, header.entries[name], _bytes(tensor)) for name, tensor in tensors.items()}
    want, got = header.metadata[CHECKSUM_KEY].split(), _checksums(given, sums).split()
    if want == got:
        return
    names = ["the header", *sorted(sums)]
    bad = [name for name, a, b in zip(names, want, got, strict=False) if a != b] if len(want) == len(got) else names[:1]
    rest = f" (+{len(bad) - 1})" if len(bad) > 1 else ""
    what = f"damaged: {bad[0]}{rest} does not match its checksum"
    raise bad_file(path, what, f"{COPY_AGAIN}; if another program rewrote it on purpose, let it drop the metadata key {CHECKSUM_KEY}")


def _checksums(metadata: Mapping[str, str], sums: Mapping[str, int]) -> str:
    """First that of the metadata, then those of the tensors, sorted by name."""
    head = zlib.crc32(json.dumps(dict(metadata), sort_keys=True).encode())
    return " ".join(f"{value:08x}" for value in (head, *(sums[name] for name in sorted(sums))))


def _tensor_crc(name: str, entry: Mapping[str, Any], data: memoryview) -> int:
    """Covers the name, type and shape too, since a flipped bit there reads the same bytes as something else."""
    return zlib.crc32(data, zlib.crc32(json.dumps([name, entry["dtype"], entry["shape"]]).encode()))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
