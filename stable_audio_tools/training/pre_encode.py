"""`pre-encode`: a data set's audio as shards of latents, by any number of processes, going on where it was stopped.

Item `n` of the result is crop `n % crops` of clip `n // crops`. Each process takes the shards of its own; one that is on the disk is
done. So nothing is lost or there twice, whenever it was stopped, and with however many processes it goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.latent_folder import LatentFacts
from stable_audio_tools.data.latent_shards import (
    DETAILS,
    PROBE,
    Details,
    index_path,
    is_shard_folder,
    missing_shards,
    read_details,
    shard_path,
    tensor_name,
)
from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.data.pre_encoded import drawn
from stable_audio_tools.data.types import Fault, ItemKey, Sample, fetch, name_of
from stable_audio_tools.inference.latents import LatentEncoder, Stored
from stable_audio_tools.models.atomic_file import atomic_file, remove_stale
from stable_audio_tools.models.safetensors_file import write_safetensors
from stable_audio_tools.training.prepare import resize_mask

log = logging.getLogger(__name__)

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
PROGRESS_S = 10.0
MOST_BYTES = 1 << 16  # of a tensor among the metadata of an item, chosen: they become text
LONGEST_S = 24 * 3600  # of a file that is encoded whole; the rest of a longer one is left out
ANOTHER = "choose another --output-path, or delete this folder"


@dataclass(frozen=True)
class Source:
    """What is encoded.

    config: of the dataset, validated. sample_size: of a crop, in samples; None: files are encoded whole. crops: of each file.
    limit: files, the first ones; None: all.
    """

    config: StrictModel
    sample_size: int | None
    sample_rate: int
    audio_channels: int
    crops: int = 1
    seed: int = 0
    limit: int | None = None

    def build(self) -> Dataset[Any]:
        """The data set, with exact times, and every item once.

        Raises:
            ConfigError: the data cannot be used, or have no files that could be encoded whole.
        """
        wanted: dict[str, Any] = {"exact_seconds": True, "resampled_shards": False}
        whole = self.sample_size is None
        if whole and "variable_length" not in type(self.config).model_fields:
            kind = self.config.dataset_type  # type: ignore[attr-defined]
            raise ConfigError([Problem((), f"{kind} data have no files of their own length", "leave it out")], "--whole-files")
        wanted |= {"variable_length": True} if whole else {}
        known = {name: value for name, value in wanted.items() if name in type(self.config).model_fields}
        config: Any = self.config.model_copy(update=known)
        size = LONGEST_S * self.sample_rate if self.sample_size is None else self.sample_size
        return config.build(sample_size=size, sample_rate=self.sample_rate, audio_channels=self.audio_channels)

    @property
    def varies(self) -> bool:
        """Items differ in length, so that each is encoded by itself."""
        return self.sample_size is None or getattr(self.config, "variable_length", False)

    @property
    def rounded_seconds(self) -> bool:
        return not getattr(self.config, "exact_seconds", True)


class Crops(Dataset[Any]):
    """The chosen crops of a data set: their metadata hold `number`, and `metadata`, or a `fault` where the file cannot be served.

    Args:
        multiple: what lengths become a multiple of, by zeros at the end.
    """

    def __init__(self, dataset: Dataset[Any], source: Source, numbers: Sequence[int], multiple: int):
        self.dataset, self.source, self.numbers, self.multiple = dataset, source, numbers, multiple

    def __len__(self) -> int:
        return len(self.numbers)

    def name(self, index: int) -> str:
        return name_of(self.dataset, self.numbers[index] // self.source.crops)

    def visit(self, key: ItemKey) -> Sample:
        number = self.numbers[key.item]
        item, crop = divmod(number, self.source.crops)
        sample = fetch(self.dataset, [ItemKey(self.source.seed, crop, item)])[0]
        what: dict[str, Any] = {"fault": sample.faults[0]} if sample.faults else {"metadata": dict(sample.metadata)}
        length = sample.audio.shape[-1]
        audio = F.pad(sample.audio, (0, -length % self.multiple)) if length % self.multiple else sample.audio
        return Sample(audio, {"number": number, **what}, length if sample.valid_length is None else sample.valid_length)


@dataclass(frozen=True)
class Job:
    """A folder of latents to be made.

    source: of the audio. clips: how many it has. encoder: on its device. stored: what of each item, in which precision.
    """

    folder: Path
    details: Details
    source: Source
    dataset: Dataset[Any]
    encoder: LatentEncoder
    stored: Stored
    dtype: torch.dtype

    def prepare(self) -> None:
        """Make the folder and write down what goes into it.

        Raises:
            ConfigError: it holds something else, or cannot be written.
        """
        check_folder(self.folder, self.details)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_stale(self.folder)
            with atomic_file(self.folder / PROBE) as file:
                write_safetensors(file, {"probe": self.encoder.probe(self.stored)}, {"stored": self.stored})
            with atomic_file(self.folder / DETAILS) as file:
                file.write(self.details.to_json().encode())
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", source=f"--output-path {self.folder}") from None

    def share(self, rank: int, world_size: int) -> list[int]:
        """The missing shards that a process is to make."""
        return [shard for shard in missing_shards(self.folder, self.details) if shard % world_size == rank]

    def numbers(self, shard: int) -> range:
        size = self.details.shard_items
        return range(shard * size, min((shard + 1) * size, self.details.items))

    def crops(self, numbers: Sequence[int]) -> Crops:
        """The audio of these items."""
        return Crops(self.dataset, self.source, numbers, self.encoder.downsampling_ratio)

    def run(self, shards: Sequence[int], *, batch_size: int, num_workers: int) -> None:
        """Make these shards.

        Raises:
            ConfigError: the data cannot be read any more.
            OSError: the disk is full, and the like.
        """
        numbers = [number for shard in shards for number in self.numbers(shard)]
        if not numbers:
            return
        loader = AudioLoader(
            self.crops(numbers), 1 if self.source.varies else batch_size, shuffle=False, num_workers=num_workers, rank=0, world_size=1
        )
        progress, shard = _Progress(len(numbers), self.source.sample_rate), _Shard()
        left = iter(shards)
        current = next(left)
        try:
            for audio, metadata in loader:
                for number, entry, latents in self._encoded(audio, metadata):
                    shard.add(number, entry, latents)
                    if number == self.numbers(current)[-1]:
                        self._write(current, shard)
                        shard, current = _Shard(), next(left, -1)
                progress.add(audio)
        finally:
            loader.close()

    def _encoded(self, audio: Tensor, metadata: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, dict[str, Any], Tensor | None]]:
        """Number, line of the index and latents of each item of a batch; no latents of a file that cannot be served."""
        encoded = self.encoder.encode(audio, self.stored).cpu()
        for item, latents in zip(metadata, encoded, strict=True):
            number, fault = item["number"], item.get("fault")
            if self.stored == "sample":
                latents = drawn(latents, self.source.seed, number)
            if fault is None and not bool(latents.isfinite().all()):
                fault = Fault(str(item["metadata"].get("path", number)), "its latents are not finite")
            latents = latents.to(_token_type(self.encoder.part.codebook_size) if self.stored == "tokens" else self.dtype)
            if fault is None and not bool(latents.isfinite().all()):
                raise ConfigError("the latents are too large for it: choose bfloat16, or float32", f"--dtype {_name(self.dtype)}")
            if fault is not None:
                log.warning("left out: %s: %s", *fault)
                yield number, {"item": number, "fault": list(fault)}, None
                continue
            frames = latents.shape[-1]
            valid = int(resize_mask(item["padding_mask"][None], frames).sum())
            yield number, {"item": number, "frames": frames, "valid": valid, "metadata": plain(item["metadata"])}, latents.contiguous()

    def _write(self, number: int, shard: _Shard) -> None:
        with atomic_file(index_path(self.folder, number)) as file:
            file.writelines(shard.lines)
        with atomic_file(shard_path(self.folder, number)) as file:
            write_safetensors(file, shard.tensors, {"key": self.details.key})


@dataclass
class _Shard:
    """What becomes one file and its index."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    lines: list[bytes] = field(default_factory=list)

    def add(self, number: int, entry: Mapping[str, Any], latents: Tensor | None) -> None:
        self.lines.append(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        if latents is not None:
            self.tensors[tensor_name(number)] = latents


class _Progress:
    """A line every few seconds: how far, how fast, how long yet."""

    def __init__(self, items: int, sample_rate: int):
        self.items, self.sample_rate = items, sample_rate
        self.done, self.seconds = 0, 0.0
        self.started = self.told = time.monotonic()

    def add(self, audio: Tensor) -> None:
        self.done += len(audio)
        self.seconds += len(audio) * audio.shape[-1] / self.sample_rate
        now = time.monotonic()
        if now - self.told > PROGRESS_S or self.done == self.items:
            self.told, spent = now, max(now - self.started, 1e-9)
            left = spent / self.done * (self.items - self.done)
            shown = "%d of %d items encoded, %.1f a second, %.0f times real time, about %.0f s left"
            log.info(shown, self.done, self.items, self.done / spent, self.seconds / spent, left)


# what a folder holds


def make_details(
    source: Source, dataset: Dataset[Any], encoder: LatentEncoder, settings: Mapping[str, Any], *, stored: Stored, shard_items: int
) -> Details:
    """What a folder holds, with the key by which it is known again.

    Args:
        settings: what else the latents depend on, as JSON; `model` says in words what encodes.
    """
    clips = len(dataset) if source.limit is None else min(len(dataset), source.limit)  # type: ignore[arg-type]
    content = {
        "dataset": plain(source.config.model_dump(exclude_unset=True)),
        "audio": audio_key(dataset, source.config),
        **{name: getattr(source, name) for name in ("sample_size", "sample_rate", "audio_channels", "crops", "seed", "limit")},
        **settings,
        "stored": stored,
        "weights": encoder.fingerprint(),
        "shard_items": shard_items,
    }
    facts = LatentFacts(
        channels=encoder.channels(stored),
        tokens=stored == "tokens",
        distribution=stored == "distribution",
        samples_per_frame=encoder.downsampling_ratio,
        sample_rate=source.sample_rate,
        sample_size=source.sample_size,
        rounded_seconds=source.rounded_seconds,
        encoder=str(settings["model"]),
    )
    content = json.loads(json.dumps(content))  # as it will be read again
    return Details(_hash(content), content, facts, clips * source.crops, shard_items)


def audio_key(dataset: Dataset[Any], config: StrictModel) -> str:
    """A hash of which files there are, their sizes and times of change, their metadata, and the user's own code for them.

    Of tar files, the hash of their places, sizes and versions.
    """
    digest = hashlib.sha256()
    for _, path in getattr(config, "code", ()):
        digest.update(Path(path).read_bytes())
    for scan in getattr(dataset, "scans", ()):
        for file in scan.files:
            status = os.stat(file.path)
            named = [file.relpath, status.st_size, status.st_mtime_ns, plain(dict(file.metadata))]
            digest.update(json.dumps(named, sort_keys=True).encode())
    for shards in getattr(dataset, "shards", ()):
        digest.update(json.dumps(shards.shards).encode())
    return digest.hexdigest()


def check_folder(folder: Path, details: Details) -> None:
    """Raises ConfigError where `folder` holds latents of anything else than `details` say, or other files."""
    source = f"--output-path {folder}"
    if is_shard_folder(folder):
        old = read_details(folder)
        names = sorted(name for name in {*old.content, *details.content} if old.content.get(name) != details.content.get(name))
        if names:
            problems = [Problem((name,), _change(name, old.content.get(name), details.content.get(name)), ANOTHER) for name in names]
            raise ConfigError(problems, source)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "holds other files" if folder.is_dir() else "is a file"
        raise ConfigError([Problem((), what, "name a new folder, or an empty one")], source)


def _change(name: str, old: Any, new: Any) -> str:
    if name == "audio":
        return "the audio files, or their metadata, have changed since the latents in this folder were made"
    if name == "weights":
        return f"the encoder has other weights than the one that made this folder ({str(old)[:12]}, now {str(new)[:12]})"
    return f"the latents in this folder were made with {json.dumps(old)}, and now it is {json.dumps(new)}"


def plain(value: Any) -> Any:
    """A value as JSON has it.

    Raises:
        ConfigError: JSON has nothing for it.
    """
    if hasattr(value, "tolist"):  # a tensor, or an array or number of NumPy
        if getattr(value, "nbytes", 0) > MOST_BYTES:
            raise ConfigError(f"metadata of {value.nbytes} bytes are too large to be stored: leave recordings out", "dataset")
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ConfigError(
        f"metadata cannot be stored: {type(value).__name__} {str(value)[:60]!r}; use text, numbers, lists or tensors", "dataset"
    )


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _token_type(codebook_size: int) -> torch.dtype:
    return torch.int16 if codebook_size <= torch.iinfo(torch.int16).max + 1 else torch.int32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
