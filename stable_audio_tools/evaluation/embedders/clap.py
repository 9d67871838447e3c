"""`clap`: the space of a pretrained CLAP (arXiv:2211.06687), which text shares. Weights are local; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.models.conditioners.base import Conditioner
from stable_audio_tools.models.conditioners.clap_audio import SAMPLE_RATE, SIZES, CLAPAudioConditioner, CLAPAudioParams
from stable_audio_tools.models.conditioners.clap_files import FOLDER_FILES, CLAPFile
from stable_audio_tools.models.conditioners.clap_text import CLAPTextConditioner, CLAPTextParams
from stable_audio_tools.models.conditioners.pretrained_text import import_transformers

from .base import file_hash


class CLAPEmbedder:
    """The unit vector of each clip; of more than 10 s, as its audio half is made for it.

    Args:
        path: the authors' checkpoint, or a local folder of a CLAP from the hub. What kind it is, is read from it.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: there is no such file or folder, or it is no CLAP.
    """

    name, sample_rate = "clap", SAMPLE_RATE

    def __init__(self, path: str, device: str = "cpu"):
        import_transformers("embedder")
        self.path, self.device = path, torch.device(device)
        audio = CLAPAudioParams.model_validate({"clap_ckpt_path": path, **kind_of(CLAPFile.read(path))})
        text = CLAPTextParams(clap_ckpt_path=path)
        self._audio = CLAPAudioConditioner(audio.width, audio, sample_rate=SAMPLE_RATE)
        self._text = CLAPTextConditioner(text.width, text)

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        return {"embedder": self.name, "hash": file_hash(_weights(self.path)), "sample_rate": SAMPLE_RATE, "fused": self._audio.fuses}

    def embed(self, audio: Tensor) -> Tensor:
        return self._vectors(self._audio, [audio])[0]

    def embed_texts(self, texts: list[str]) -> Tensor:
        return self._vectors(self._text, texts)

    @torch.no_grad()
    def _vectors(self, half: Conditioner, values: list[Any]) -> Tensor:
        pooled = half(half.prepare(values).to(self.device)).pooled
        assert pooled is not None
        return pooled.float().cpu()


def kind_of(file: CLAPFile) -> dict[str, Any]:
    """What the authors' file does not say of itself but in its shapes; nothing of a folder, which has a config."""
    width = file.state.get("audio_branch.patch_embed.proj.weight")
    sizes = {first: size for size, (first, _) in SIZES.items()}
    if width is None or len(width) not in sizes:
        return {}
    return {"audio_model_type": sizes[len(width)], "enable_fusion": any("mel_conv2d" in key for key in file.state)}


def _weights(path: str) -> Path:
    found = [file for name in FOLDER_FILES if (file := Path(path) / name).is_file()]
    return found[0] if found else Path(path)
