"""Dataset types whose configs are known and whose data cannot be read yet: `wds`, and `s3`, its older name.

Their configs are checked as strictly as any other; what needs the data says that they cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NoReturn, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.source import Path as Place

CROP = "frames of a clip of latents; default: all that the file has"


class UnreadItem(StrictModel):
    """One place that data come from."""

    id: str = Field(min_length=1, description="a name for messages and the metadata key dataset_id")
    custom_metadata_module: str | None = Field(
        None, description="Python file with get_custom_metadata(info, audio) -> dict; runs only with --allow-code"
    )


class UnreadConfig(StrictModel):
    """What these types share."""

    dataset_type: str
    datasets: tuple[UnreadItem, ...] = Field(min_length=1)

    @property
    def code(self) -> tuple[tuple[Place, str], ...]:
        """Python files that the dataset runs, with their places in the config."""
        files = enumerate(item.custom_metadata_module for item in self.datasets)
        return tuple((("datasets", index, "custom_metadata_module"), file) for index, file in files if file)

    def build(self, *, sample_size: int, sample_rate: int, audio_channels: int = 2) -> NoReturn:
        """Raises ConfigError."""
        self.refuse()

    def refuse(self) -> NoReturn:
        """Raises ConfigError: there is no reader."""
        fix = "audio_dir reads folders of audio files, pre_encoded latents, synthetic makes sounds on the fly"
        raise ConfigError(
            [Problem(("dataset_type",), f"{self.dataset_type} data cannot be read in this version", fix, self.dataset_type)],
            "dataset config",
        )


class WebDatasetItem(UnreadItem):
    """Tar files of audio, or of latents, each with its metadata: in a folder, or below a prefix of S3."""

    path: str | None = Field(None, min_length=1, description="folder of tar files")
    s3_path: str | None = Field(None, min_length=1, description="s3://bucket/prefix of tar files")
    profile: str | None = Field(None, description="profile of the AWS settings for s3_path; default: the default one")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.s3_path is None):
            message = "no place of the data" if self.path is None else "path and s3_path are two places"
            raise ConfigError([Problem((), message, "give path or s3_path")])
        if self.profile is not None and self.s3_path is None:
            raise ConfigError([Problem(("profile",), "has no effect without s3_path", "remove it", on_key=True)])
        return self


class WebDatasetConfig(UnreadConfig):
    """Tar files that are read one after another."""

    dataset_type: Literal["wds", "s3"]
    datasets: tuple[WebDatasetItem, ...] = Field(min_length=1)
    random_crop: bool = Field(True, description="a new place at every visit; false: the start")
    remove_silence: bool = Field(False, description="shorten long silence inside mono clips")
    silence_threshold: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.01, 0.5), description="the amplitude below which it is silent, and the seconds of it that stay"
    )
    max_silence_duration: NonNegativeFloat = Field(0.25, description="seconds of silence that are left alone")
    volume_norm: bool = Field(False, description="bring clips to a level drawn at random")
    volume_norm_param: tuple[float, NonNegativeFloat] = Field(
        (-16.0, 2.0), description="these levels: the middle in LUFS, and dB to either side"
    )
    epoch_steps: PositiveInt = Field(2000, description="batches of an epoch, with resampled_shards")
    pre_encoded: bool = Field(False, description="the tar files hold latents")
    latent_crop_length: PositiveInt | None = Field(None, description=CROP)
    resampled_shards: bool = Field(True, description="draw tar files with replacement, without end; false: each once an epoch")

    @model_validator(mode="after")
    def _every_setting_acts(self) -> Self:
        if problems := [*self._idle_settings()]:
            raise ConfigError(problems)
        return self

    def _idle_settings(self) -> Iterator[Problem]:
        """Settings that could not take effect; defaults that are written out do no harm."""
        switches = {
            "remove_silence": ("silence_threshold", "max_silence_duration"),
            "volume_norm": ("volume_norm_param",),
            "pre_encoded": ("latent_crop_length",),
            "resampled_shards": ("epoch_steps",),
        }
        for switch, keys in switches.items():
            for key in keys:
                if not getattr(self, switch) and getattr(self, key) != type(self).model_fields[key].default:
                    yield Problem((key,), f"has no effect without {switch}", f'set "{switch}": true, or remove it', on_key=True)
