"""Where an export goes and how it is written: a file, or a folder with the weights and their config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.export import diffusers
from stable_audio_tools.models.atomic_file import atomic_file
from stable_audio_tools.models.checkpoints import save_model
from stable_audio_tools.models.pretrained import CONFIG_NAME, WEIGHT_NAMES
from stable_audio_tools.models.safetensors_file import write_safetensors
from stable_audio_tools.models.torch_file import save_ckpt

Format = Literal["native", "peer", "diffusers"]

SAFETENSORS, CKPT = ".safetensors", ".ckpt"
ENDINGS: dict[str, tuple[str, ...]] = {"native": (SAFETENSORS,), "peer": (SAFETENSORS, CKPT), "diffusers": ()}
"""Of the single files that a format can be."""
OTHER_ENDINGS = (SAFETENSORS, CKPT, ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Target:
    """The files of an export.

    weights: the tensors. config: the model's config, or None where the weights alone carry it.
    """

    weights: Path
    config: Path | None

    @classmethod
    def of(cls, out: Path, layout: Format) -> Target:
        """What `out` means: a file by its ending, else a folder.

        Raises:
            ConfigError: the format has no such file.
        """
        if out.suffix.lower() in OTHER_ENDINGS and not out.is_dir():
            if out.suffix.lower() in ENDINGS[layout]:
                return cls(out, None)
            named = " or ".join([*(f"a file that ends in {ending}" for ending in ENDINGS[layout]), "a folder"])
            raise ConfigError([Problem((), f"--format {layout} is no {out.suffix} file", f"name {named}")], f"--out {out}")
        if layout == "diffusers":
            return cls(out / diffusers.WEIGHTS_NAME, out / diffusers.CONFIG_NAME)
        return cls(out / WEIGHT_NAMES[0], out / CONFIG_NAME)

    @property
    def folder(self) -> Path:
        return self.weights.parent

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.weights,) if self.config is None else (self.weights, self.config)

    def write(self, state: Mapping[str, Tensor], config: Mapping[str, Any], header: Mapping[str, str]) -> None:
        """Write all files, each of which appears whole or not at all; the folder is made where needed.

        Args:
            state: tensors under the names of the format.
            config: as the format has it.
            header: further texts beside the weights, where the format has a place for them.

        Raises:
            OSError: no space, no permission and the like.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.weights.name == diffusers.WEIGHTS_NAME:
            with atomic_file(self.weights) as file:
                write_safetensors(file, state, {"format": "pt"})
        elif self.weights.suffix.lower() == CKPT:
            save_ckpt(self.weights, state, config)
        else:
            save_model(self.weights, state, config, header)
        if self.config is not None:
            write_text(self.config, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all.

    Raises:
        OSError: no space, no permission and the like.
    """
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", errors="replace"))
