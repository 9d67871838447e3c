"""Audio as a condition, through the encoder of a pretransform: `pretransform` for one signal, `source_mix` for a sum of several.

B batch, S sources, C channels, T samples, D output channels, N latent frames.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.audio.io import to_channels
from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.models.checkpoints import load_into, load_weights
from stable_audio_tools.models.pretransforms import Pretransform, PretransformConfig, latent_problems
from stable_audio_tools.models.pretransforms.base import BasePretransformConfig

from .base import BaseConditionerConfig, Condition, Conditioner, ConditionerParams, Form
from .frozen import Unowned
from .pretrained_text import project, projection

logger = logging.getLogger(__name__)

Encoder = TypeVar("Encoder", Pretransform, BasePretransformConfig)


class EncodedAudioParams(ConditionerParams):
    """Which pretransform encodes the audio."""

    sample_rate: PositiveInt = Field(description="of the audio, Hz")
    use_model_pretransform: bool = Field(default=False, description="encode with the model's own pretransform")
    pretransform_config: PretransformConfig | None = Field(default=None, description="the pretransform to encode with, if not the model's")
    pretransform_ckpt_path: str | None = Field(default=None, description="file with the pretransform's weights")
    save_pretransform: bool = Field(default=False, description="keep the pretransform's weights in this model's checkpoints")

    @model_validator(mode="after")
    def _one_pretransform(self) -> Self:
        if self.use_model_pretransform == (self.pretransform_config is not None):
            key = "use_model_pretransform" if self.use_model_pretransform else "pretransform_config"
            both = (
                "both use_model_pretransform and pretransform_config are given"
                if self.use_model_pretransform
                else "no pretransform is given"
            )
            raise ConfigError([Problem((key,), both, "give pretransform_config, or set use_model_pretransform to true")])
        if problems := latent_problems(self.pretransform_config, "pretransform_config"):
            raise ConfigError(problems)
        if getattr(self.pretransform_config, "enable_grad", False) and not self.save_pretransform:
            message = "enable_grad has no effect: a pretransform that is not saved is not trained either"
            raise ConfigError([Problem(("pretransform_config", "enable_grad"), message, "set save_pretransform to true, or remove it")])
        return self

    def example_signal(self, model_pretransform: BasePretransformConfig | None, *, latents: bool = False) -> Tensor:
        """A second of silence in whole frames, as audio or as the zeros of its latents."""
        encoder = self._chosen(self.pretransform_config, model_pretransform)
        frames = -(-self.sample_rate // encoder.downsampling_ratio)
        return torch.zeros(encoder.encoded_channels, frames) if latents else torch.zeros(1, frames * encoder.downsampling_ratio)

    def build_pretransform(self, model_pretransform: Pretransform | None) -> Pretransform:
        """The pretransform with its weights.

        Raises:
            ConfigError: it is to be the model's, which has none; or the weights do not fit.
        """
        own = self.pretransform_config
        pretransform = self._chosen(None if own is None else own.build(self.sample_rate), model_pretransform)
        if own is not None and own.needs_checkpoint and self.pretransform_ckpt_path is None and not self.save_pretransform:
            logger.warning(
                "the %s of pretransform_config has no pretransform_ckpt_path, and it is not saved: its weights stay random, "
                "and other ones in every run; name its file, or use_model_pretransform",
                own.type,  # type: ignore[attr-defined]
            )
        if self.pretransform_ckpt_path is not None and torch.get_default_device().type != "meta":
            inner = getattr(pretransform, "model", pretransform)  # published files hold the autoencoder's own keys
            load_into(inner, load_weights(self.pretransform_ckpt_path))
        return pretransform

    @staticmethod
    def _chosen(own: Encoder | None, of_model: Encoder | None) -> Encoder:
        """What encodes: the own one if there is one, else the model's.

        Raises:
            ConfigError: there is neither.
        """
        chosen = of_model if own is None else own
        if chosen is None:
            message = "use_model_pretransform is true, but the model has no pretransform"
            raise ConfigError([Problem(("use_model_pretransform",), message, "give pretransform_config")], "conditioning")
        return chosen


class PretransformConditionerConfig(BaseConditionerConfig):
    """Audio, encoded; for input concatenation."""

    needs: ClassVar = ("pretransform",)

    type: Literal["pretransform"]
    config: EncodedAudioParams

    @property
    def form(self) -> Form:
        return "signal"

    def example(self, sample_rate: int, pretransform: BasePretransformConfig | None = None) -> Any:
        return self.config.example_signal(pretransform)

    def build(
        self, cond_dim: int, *, tokens: bool = True, pooled: bool = True, pretransform: Pretransform | None = None
    ) -> PretransformConditioner:
        encoder = self.config.build_pretransform(pretransform)
        return PretransformConditioner(self.width(cond_dim), encoder, save_pretransform=self.config.save_pretransform)


class SourceMixParams(EncodedAudioParams):
    source_keys: tuple[str, ...] = Field(default=(), description="the names that sources may have; each has weights of its own")
    pre_encoded: bool = Field(default=False, description="the sources are latents, not audio")
    allow_null_source: bool = Field(default=False, description="learn a signal that stands for an item without any source")
    source_length: PositiveInt | None = Field(default=None, description="frames of that signal")

    @model_validator(mode="after")
    def _sources_are_sound(self) -> Self:
        problems = []
        for index, key in enumerate(self.source_keys):
            if key in self.source_keys[:index]:
                problems.append(Problem(("source_keys", index), f"{value_text(key)} is listed twice", "keep one", key))
        if not self.source_keys and not self.allow_null_source:
            problems.append(Problem(("source_keys",), "no source is named, so there is nothing to mix", "name the sources"))
        if self.allow_null_source and self.source_length is None:
            message = "allow_null_source needs the length of the signal that stands for no source"
            problems.append(Problem(("source_length",), message, "set source_length to the latent frames of the other items"))
        if problems:
            raise ConfigError(problems)
        return self


class SourceMixConfig(BaseConditionerConfig):
    """Audio of several sources, each encoded and projected, as their sum; for input concatenation."""

    needs: ClassVar = ("pretransform",)

    type: Literal["source_mix"]
    config: SourceMixParams

    @property
    def form(self) -> Form:
        return "signal"

    def example(self, sample_rate: int, pretransform: BasePretransformConfig | None = None) -> Any:
        params = self.config
        if params.allow_null_source:
            return {}
        return {key: params.example_signal(pretransform, latents=params.pre_encoded) for key in params.source_keys}

    def build(
        self, cond_dim: int, *, tokens: bool = True, pooled: bool = True, pretransform: Pretransform | None = None
    ) -> SourceMixConditioner:
        return SourceMixConditioner(self.width(cond_dim), self.config.build_pretransform(pretransform), self.config)


class EncodingConditioner(Conditioner):
    """A conditioner with a pretransform, which is a part of it only where it is to be saved."""

    def __init__(self, pretransform: Pretransform, *, save_pretransform: bool):
        super().__init__()
        self.io_channels, self.ratio = pretransform.io_channels, pretransform.downsampling_ratio
        self.encoded_channels = pretransform.encoded_channels
        self.pretransform: Pretransform | None = pretransform if save_pretransform else None
        self._unowned = None if save_pretransform else Unowned(pretransform)

    def stand_in(self) -> None:
        if self._unowned is not None and any(parameter.is_meta for parameter in self._unowned.module.parameters()):
            self._unowned.module.to_empty(device="cpu")

    def parse_audio(self, value: Any) -> Tensor:
        """(io_channels, T), whole frames, from (C, T) or (T,)."""
        if not isinstance(value, Tensor) or value.ndim not in (1, 2) or not value.is_floating_point():
            raise ValueError(f"expected audio as a tensor (channels, samples), got {_described(value)}")
        audio = to_channels(value if value.ndim == 2 else value[None], self.io_channels)
        if audio.shape[1] == 0 or audio.shape[1] % self.ratio:
            raise ValueError(f"audio has {audio.shape[1]} samples, which is no multiple of the pretransform's {self.ratio}: pad or cut it")
        return audio

    def encode(self, audio: Tensor) -> Tensor:
        """(B, io_channels, T) to (B, encoded_channels, N), with a gradient only if the pretransform trains."""
        pretransform: Any = self.pretransform if self._unowned is None else self._unowned.on(audio.device)
        with torch.set_grad_enabled(pretransform.enable_grad and torch.is_grad_enabled()):
            return pretransform.encode(audio)


class PretransformConditioner(EncodingConditioner):
    """Audio (C, T) of each item as latents (B, D, N), through a linear layer over the channels where their number differs."""

    def __init__(self, dim: int, pretransform: Pretransform, *, save_pretransform: bool = False):
        super().__init__(pretransform, save_pretransform=save_pretransform)
        self.proj_out = projection(pretransform.encoded_channels, dim, always=False)

    def parse(self, value: Any) -> Tensor:
        return self.parse_audio(value)

    def collate(self, rows: Sequence[Tensor]) -> Tensor:
        return torch.stack(_of_one_length(rows, "audio"))

    def forward(self, prepared: Tensor) -> Condition:
        latents = self.encode(prepared)
        return signal_condition(project(self.proj_out, latents.transpose(1, 2)).transpose(1, 2))


@dataclass(frozen=True)
class Sources:
    """The sources that each item of a batch has, as audio (C, T) or latents (C, N), by their place in source_keys."""

    items: tuple[Mapping[int, Tensor], ...]
    device: torch.device

    def to(self, device: torch.device | str) -> Sources:
        moved = tuple({place: signal.to(device) for place, signal in item.items()} for item in self.items)
        return replace(self, items=moved, device=torch.device(device))


class SourceMixConditioner(EncodingConditioner):
    """The sum of each item's sources (B, D, N), each encoded and through its own 1x1 convolution; other keys are not read.

    Every head takes part in every batch, since weights that no gradient reaches stop distributed training.
    """

    def __init__(self, dim: int, pretransform: Pretransform, params: SourceMixParams):
        super().__init__(pretransform, save_pretransform=params.save_pretransform)
        channels = pretransform.encoded_channels
        self.source_keys, self.pre_encoded, self.source_length = params.source_keys, params.pre_encoded, params.source_length
        # Published checkpoints hold this layer, and nothing uses it.
        self.proj_out = projection(channels, dim, always=False).requires_grad_(False)
        self.source_heads = nn.ModuleList([nn.Conv1d(channels, dim, kernel_size=1) for _ in params.source_keys])
        self.null_source = nn.Parameter(torch.randn(dim, 1)) if params.allow_null_source else None

    def parse(self, value: Any) -> dict[int, Tensor]:
        if not isinstance(value, Mapping):
            raise ValueError(f"expected an object of sources by name, got {_described(value)}")
        found = {place: value[key] for place, key in enumerate(self.source_keys) if value.get(key) is not None}
        if not found and self.null_source is None:
            wanted, given = ", ".join(self.source_keys), ", ".join(map(str, value)) or "none"
            raise ValueError(f"none of the sources {wanted} is there; given: {given}; allow_null_source permits that")
        return {place: self._parse_source(self.source_keys[place], signal) for place, signal in found.items()}

    def collate(self, rows: Sequence[Mapping[int, Tensor]]) -> Sources:
        sources = _of_one_length([signal for row in rows for signal in row.values()], "sources")
        frames = sources[0].shape[1] // (1 if self.pre_encoded else self.ratio) if sources else None
        if self.null_source is not None and frames not in (None, self.source_length) and not all(rows):
            raise ValueError(f"an item without sources has {self.source_length} frames (source_length), but the others have {frames}")
        return Sources(tuple(rows), torch.device("cpu"))

    def forward(self, prepared: Sources) -> Condition:
        places = [(index, place) for index, item in enumerate(prepared.items) for place in item]
        present = torch.zeros(len(prepared.items), len(self.source_keys), dtype=torch.bool)
        for index, place in places:
            present[index, place] = True
        present = present.to(prepared.device)
        latents = self._latents([prepared.items[index][place] for index, place in places], present)
        heads = [head(latents[:, place]) * present[:, place, None, None] for place, head in enumerate(self.source_heads)]
        mix = sum(heads[1:], heads[0]) if heads else None
        if self.null_source is None:
            assert mix is not None
            return signal_condition(mix)
        null = self.null_source.expand(len(prepared.items), -1, latents.shape[-1])
        return signal_condition(null if mix is None else torch.where(present.any(1)[:, None, None], mix, null))

    def _latents(self, signals: Sequence[Tensor], present: Tensor) -> Tensor:
        """(B, S, C, N), zeros where a source is not there."""
        dtype = next(self.parameters()).dtype if self.null_source is None else self.null_source.dtype
        if not signals:
            assert self.source_length is not None
            return torch.zeros(*present.shape, self.encoded_channels, self.source_length, device=present.device, dtype=dtype)
        stacked = torch.stack(list(signals))
        encoded = (stacked if self.pre_encoded else self.encode(stacked)).to(dtype)
        latents = encoded.new_zeros(*present.shape, *encoded.shape[1:])
        return latents.masked_scatter(present[:, :, None, None], encoded)

    def _parse_source(self, key: str, value: Any) -> Tensor:
        if not self.pre_encoded:
            try:
                return self.parse_audio(value)
            except ValueError as error:
                raise ValueError(f"source {value_text(key)}: {error}") from None
        if not isinstance(value, Tensor) or value.ndim != 2 or value.shape[0] != self.encoded_channels:
            raise ValueError(f"source {value_text(key)}: expected latents ({self.encoded_channels}, frames), got {_described(value)}")
        return value


def signal_condition(signal: Tensor) -> Condition:
    """A (B, C, N) signal, all of it real."""
    return Condition(signal, torch.ones(signal.shape[0], signal.shape[2], dtype=torch.bool, device=signal.device))


def _of_one_length(signals: Sequence[Tensor], what: str) -> list[Tensor]:
    lengths = sorted({signal.shape[-1] for signal in signals})
    if len(lengths) > 1:
        raise ValueError(f"{what} of one batch must be of one length, got {', '.join(map(str, lengths))}: pad or cut the shorter ones")
    return list(signals)


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return value_text(value)
    return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
