"""The weights of a CLAP (arXiv:2211.06687), whoever wrote the file: its authors' checkpoint, or a folder of the hub.

Text is brought to the authors' names, since those are the file format of a fine-tuned text half; audio to the names of transformers,
whose network computes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stable_audio_tools.models.checkpoint_error import bad_file
from stable_audio_tools.models.checkpoints import match_weights
from stable_audio_tools.models.weight_files import read_weight_file

from .pretrained_text import folder_config

KEY = "clap_ckpt_path"
EMBEDDING = 512  # width of the space that text and audio share, in every published CLAP
SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
CONSTANTS = (".relative_position_index", ".num_batches_tracked")  # which the network knows itself
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")

TEXT_TO_AUTHORS = (
    (r"^text_model\.", "text_branch."),
    (r"^(text|audio)_projection\.linear1\.", r"\1_projection.0."),
    (r"^(text|audio)_projection\.linear2\.", r"\1_projection.2."),
)
AUDIO_TO_TRANSFORMERS = (
    (r"^audio_branch\.", "audio_model.audio_encoder."),
    (r"^audio_projection\.0\.", "audio_projection.linear1."),
    (r"^audio_projection\.2\.", "audio_projection.linear2."),
    (r"\.bn0\.", ".batch_norm."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
)


@dataclass(frozen=True)
class CLAPFile:
    """What was read: tensors under the names of whoever wrote them, and a folder's `config.json`."""

    path: str
    state: Mapping[str, Tensor]
    config: Mapping[str, Any]

    @classmethod
    def read(cls, path: str) -> CLAPFile:
        """
        Raises:
            CheckpointError: there is no such file or folder, or it is damaged or unsafe.
        """
        config = folder_config(path)
        found = [file for name in FOLDER_FILES if (file := Path(path) / name).is_file()]
        with torch.serialization.safe_globals(_numbers()):
            content = read_weight_file(found[0] if config is not None and found else path).content
        inner = content.get("state_dict", content)
        state = {str(key).removeprefix("module."): value for key, value in inner.items() if isinstance(value, Tensor)}
        return cls(path, state, config or {})

    def load_text(self, half: nn.Module) -> None:
        """Into `text_branch` and `text_projection`; what else the file has, and nothing reads, is taken where it fits.

        Raises:
            CheckpointError: something is missing or of another shape.
        """
        state = {_renamed(key, TEXT_TO_AUTHORS): value for key, value in self.state.items()}
        self._load(
            half, state, ("text_branch.", "text_projection."), "name a CLAP with a RoBERTa as its text half, as the published ones have"
        )

    def load_audio(self, half: nn.Module) -> None:
        """Into a `ClapAudioModelWithProjection`.

        Raises:
            CheckpointError: something is missing or of another shape.
        """
        state: dict[str, Tensor] = {}
        for key, value in self.state.items():
            if key.startswith("audio_branch.") and ".qkv." in key:
                for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    state[_renamed(key, AUDIO_TO_TRANSFORMERS).replace(".qkv.", f".{part}.")] = piece
            else:
                state[_renamed(key, AUDIO_TO_TRANSFORMERS) if key.startswith("audio_") else key] = value
        self._load(half, state, ("",), "set audio_model_type and enable_fusion as this CLAP was trained")

    def _load(self, half: nn.Module, state: Mapping[str, Tensor], needed: tuple[str, ...], fix: str) -> None:
        present = half.state_dict()
        needs = {key for key in present if key.startswith(needed) and not key.endswith(CONSTANTS)}
        fits = {key for key, value in present.items() if key in state and state[key].shape == value.shape}
        wanted = {key: present[key] for key in present if key in needs | fits}
        matched, report = match_weights({key: state[key] for key in wanted if key in state}, wanted, source=self.path)
        if report.missing or report.mismatched:
            raise bad_file(self.path, f"does not hold this half of a CLAP: {report.counts}\n{report.details}", fix)
        half.load_state_dict(matched, strict=False)


def _renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _numbers() -> list[Any]:
    """What the weights-only reader may also rebuild: numpy numbers, such as the scores that the authors' checkpoints carry."""
    import numpy as np

    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]
    kinds = {type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")}
    return [*((scalar, name) for name in SCALARS), np.dtype, *sorted(kinds, key=lambda kind: kind.__name__)]
