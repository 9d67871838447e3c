"""Text embeddings beside stored latents: what the frozen networks of a model's text conditioners make of every text there is.

Only the networks' own output is stored, before projections that train. Each text is found by its hash, so that the same files serve
whatever order texts come in; a text that is not there, such as a demo's, is encoded as always.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.latent_shards import ShardFolder
from stable_audio_tools.data.pre_encoded import PreEncodedDataset
from stable_audio_tools.models.atomic_file import atomic_file
from stable_audio_tools.models.conditioners.base import Conditioner, unwrap
from stable_audio_tools.models.conditioners.frozen import Encoded, FrozenTextEncoder
from stable_audio_tools.models.conditioners.pretrained_text import PretrainedTextConditioner
from stable_audio_tools.models.config import BaseModelConfig
from stable_audio_tools.models.safetensors_file import read_header, write_safetensors

log = logging.getLogger(__name__)

TEXTS_PER_FILE = 4096  # chosen: files of some hundred MB at most
BATCH = 64  # texts encoded at once, chosen


def text_conditioners(config: BaseModelConfig) -> dict[str, PretrainedTextConditioner]:
    """The conditioners of a model config, by id, whose network is frozen; their projections have no weights to speak of."""
    conditioning = getattr(config.model, "conditioning", None)
    built = {c.id: c.build(conditioning.cond_dim) for c in conditioning.configs if not c.needs} if conditioning else {}
    return frozen_ones(built)


def frozen_ones(conditioners: Mapping[str, Conditioner]) -> dict[str, PretrainedTextConditioner]:
    return {name: c for name, c in conditioners.items() if isinstance(c, PretrainedTextConditioner) and c.frozen is not None}


def store_texts(
    folder: ShardFolder,
    conditioners: Mapping[str, PretrainedTextConditioner],
    default_keys: Mapping[str, str],
    dtype: torch.dtype,
    device: str,
) -> dict[str, int]:
    """Encode the texts of a finished folder; files that are there stay. Returns how many texts each conditioner has."""
    counts = {}
    for name, conditioner in conditioners.items():
        encoder = conditioner.frozen
        assert encoder is not None
        texts = sorted({text for item in range(len(folder)) if isinstance(text := _text(folder.metadata(item), name, default_keys), str)})
        for number, start in enumerate(range(0, len(texts), TEXTS_PER_FILE)):
            path = _path(Path(folder.root), name, number)
            if not path.exists():
                _write(path, texts[start : start + TEXTS_PER_FILE], encoder, dtype, torch.device(device))
                log.info("%s: %d of %d texts encoded", name, min(start + TEXTS_PER_FILE, len(texts)), len(texts))
        counts[name] = len(texts)
    return counts


def recall_texts(model: nn.Module, dataset: Any) -> None:
    """Let a model's frozen text conditioners read what is stored beside the latents of a data set.

    Raises:
        ConfigError: it was stored by another text network than the conditioner's.
    """
    conditioner = getattr(model, "conditioner", None)
    if not isinstance(dataset, PreEncodedDataset) or conditioner is None:
        return
    for name, one in frozen_ones(conditioner.conditioners).items():
        encoder = one.frozen
        assert encoder is not None
        places: dict[str, str] = {}
        for index, folder in enumerate(dataset.folders):
            if isinstance(folder, ShardFolder):
                for path in _files(Path(folder.root), name):
                    places |= _texts_in(path, encoder, name, ("datasets", index, "path"))
        if places:
            encoder.recall = _recalling(places)
            log.info("%s: %d texts are stored beside the latents", name, len(places))


def _text(metadata: Mapping[str, Any], name: str, default_keys: Mapping[str, str]) -> Any:
    value = metadata.get(name)
    return unwrap(metadata.get(default_keys.get(name, name)) if value is None else value)


def _path(root: Path, name: str, number: int) -> Path:
    return root / f"texts_{name}_{number:05d}.safetensors"


def _files(root: Path, name: str) -> list[Path]:
    """Those that are there, in their order."""
    return list(takewhile(Path.exists, (_path(root, name, number) for number in count())))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def identity(encoder: FrozenTextEncoder) -> str:
    """What tells one text network from another: the names and settings that it is loaded by."""
    return json.dumps([str(argument) for argument in getattr(encoder.load, "args", ())])


def _write(path: Path, texts: Sequence[str], encoder: FrozenTextEncoder, dtype: torch.dtype, device: torch.device) -> None:
    tensors: dict[str, Tensor] = {}
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        for text, (features, mask) in zip(batch, encoder.encode(batch, device), strict=True):
            tensors |= {_hash(text): features.cpu().to(dtype), f"{_hash(text)}.mask": mask.cpu()}
    with atomic_file(path) as file:
        write_safetensors(file, tensors, {"encoder": identity(encoder)})


def _texts_in(path: Path, encoder: FrozenTextEncoder, name: str, place: tuple[str | int, ...]) -> dict[str, str]:
    """The hashes of a file's texts, and the file."""
    header = read_header(path)
    if header.metadata["encoder"] != identity(encoder):
        message = (
            f"the texts in {path.name} were encoded by {header.metadata['encoder']}, and the conditioner {name} is {identity(encoder)}"
        )
        raise ConfigError([Problem(place, message, f"delete {path.name}, and run pre-encode with --text again")], "dataset config")
    return {entry: str(path) for entry in header.entries if not entry.endswith(".mask")}


def _recalling(places: Mapping[str, str]) -> Callable[[Sequence[str]], dict[str, Encoded]]:
    def recall(texts: Sequence[str]) -> dict[str, Encoded]:
        found = {text: _hash(text) for text in texts}
        return {text: _read(places[key], key) for text, key in found.items() if key in places}

    return recall


def _read(path: str, key: str) -> Encoded:
    file = _opened(path)
    return Encoded(file.get_tensor(key).float(), file.get_tensor(f"{key}.mask"))


@lru_cache
def _opened(path: str) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="pt")
