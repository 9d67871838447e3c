"""The teacher of an autoencoder: its config, where its weights are, and whether its latents are those of the model in training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag
from torch import nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.checkpoints import load_into, load_weights, read_model_config
from stable_audio_tools.models.config import AutoencoderModel

log = logging.getLogger(__name__)


class TeacherFile(StrictModel):
    """A file of weights that carries its model's config, or has it beside it as model_config.json."""

    source: Literal["checkpoint"]
    path: str

    def read(self) -> AutoencoderModel:
        """The config in the file.

        Raises:
            ConfigError: there is no such file, or no config of an autoencoder in it.
        """
        return validate(AutoencoderModel, read_model_config(self.path), self.path)


def _kind(value: Any) -> str:
    named = "source" in value if isinstance(value, Mapping) else isinstance(value, TeacherFile)
    return "TeacherFile" if named else "AutoencoderModel"


TeacherModel = Annotated[
    Annotated[AutoencoderModel, Tag("AutoencoderModel")] | Annotated[TeacherFile, Tag("TeacherFile")], Discriminator(_kind)
]


def teacher_config(teacher: AutoencoderModel | TeacherFile) -> AutoencoderModel:
    """The teacher's config, from the file where it is there.

    Raises:
        ConfigError: see `TeacherFile.read`; the problem is at `path`.
    """
    if isinstance(teacher, AutoencoderModel):
        return teacher
    try:
        return teacher.read()
    except ConfigError as error:
        problem = error.problems[0]
        raise ConfigError([Problem(("path",), f"{teacher.path}: {problem.message}", problem.fix, teacher.path)]) from None


def build_teacher(teacher: AutoencoderModel | TeacherFile, path: str | None, model: nn.Module) -> AudioAutoencoder:
    """The teacher with its weights; without them where `model` is on the meta device, which is planned and not trained.

    Args:
        path: of the weights, where `teacher` does not name them itself.

    Raises:
        CheckpointError: the file is missing, damaged or of another model.
    """
    built = teacher_config(teacher).build()
    source = teacher.path if isinstance(teacher, TeacherFile) else path
    assert source is not None
    if not next(model.parameters()).is_meta:
        log.info("teacher: %s", load_into(built, load_weights(source)))
    return built


def teacher_problems(teacher: AutoencoderModel, run: AutoencoderModel, *, mono: bool) -> Iterator[Problem]:
    """Why `teacher` cannot teach the model of `run`, with paths in the teacher's config.

    Args:
        mono: encoders hear the mean of the channels, so that they may differ in channels.
    """
    theirs, ours = teacher.model, run.model
    same: dict[tuple[str, ...], tuple[int, int]] = {
        ("sample_rate",): (teacher.sample_rate, run.sample_rate),
        ("model", "latent_dim"): (theirs.latent_dim, ours.latent_dim),
        ("model", "downsampling_ratio"): (theirs.downsampling_ratio, ours.downsampling_ratio),
        ("model", "out_channels"): (theirs.out_channels, ours.out_channels),
    }
    if not mono:
        same["model", "in_channels"] = (theirs.in_channels, ours.in_channels)
    for path, (given, wanted) in same.items():
        if given != wanted:
            message = f"the teacher's {path[-1]} is {given}, but that of the model in training is {wanted}"
            yield Problem(path, message, "each must be able to decode what the other encodes", given)
    if run.sample_size % theirs.length_multiple:
        message = f"the teacher takes multiples of {theirs.length_multiple} samples, which sample_size {run.sample_size} is not"
        yield Problem((), message, f"use a sample_size that is a multiple of {theirs.length_multiple}")
