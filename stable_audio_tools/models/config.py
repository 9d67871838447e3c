"""Model configs: what a JSON document that describes a model may say, as a union told apart by `model_type`.

The `training` section is carried unread, so that a published config loads where nothing is trained; `training/config.py` narrows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator
from torch import nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.diffusion.known import Told
from stable_audio_tools.diffusion.objectives import parse_objective

from .autoencoders.autoencoder import AudioAutoencoder, AutoencoderBody
from .conditioners import INPAINT_IDS
from .denoisers import UnconditionalConfig
from .denoisers.base import BaseNetworkConfig
from .diffusion_autoencoder import DiffusionAutoencoder, DiffusionAutoencoderBody
from .latent_diffusion import ConditionedDiffusion, ConditionedDiffusionBody
from .lm import AudioLanguageModel, AudioLMBody
from .pretransforms.base import BasePretransformConfig
from .unconditional_diffusion import UnconditionalDiffusion

MAX_AUDIO_CHANNELS = 2


def _frames_and_ratio(key: str, frames: int, ratio: int) -> str:
    return f"{key} {frames}" if ratio == 1 else f"the pretransform's downsampling ratio {ratio} x {key} {frames}"


def _denoised_multiple(network: BaseNetworkConfig, pretransform: BasePretransformConfig | None) -> tuple[int, str]:
    """What sample_size is a multiple of where `network` denoises what `pretransform` makes, and the keys that make it so.

    A network that takes any number of frames leaves that to the pretransform: released configs say 20 s, whatever frames that holds.
    """
    key, frames = network.frame_multiple
    if pretransform is None:
        return frames, _frames_and_ratio(key, frames, 1)
    if frames == 1:
        return pretransform.length_multiple, "what model.pretransform takes"
    return pretransform.downsampling_ratio * frames, _frames_and_ratio(key, frames, pretransform.downsampling_ratio)


class BaseModelConfig(StrictModel):
    """The top level of every model config."""

    model_type: str
    sample_rate: PositiveInt = Field(description="Hz, of all audio in and out")
    sample_size: PositiveInt = Field(description="samples of a training clip")
    audio_channels: PositiveInt = Field(default=2, description="channels of the audio that data and demos have: 1 mono, 2 stereo")
    model: Any
    training: dict[str, Any] | None = Field(default=None, description="how it is trained; read where training is")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if problems := [*self._problems()]:
            raise ConfigError(problems)
        return self

    @property
    def samples_per_frame(self) -> int:
        """Audio samples of one latent frame, or of one frame of tokens."""
        return self.model.downsampling_ratio

    @property
    def length_multiple(self) -> int:
        """What numbers of audio samples must be a multiple of."""
        return self._sample_multiple()[0]

    def build(self) -> nn.Module:
        """The model, with fresh weights."""
        return self.model.build(self.sample_rate)

    def _problems(self) -> Iterator[Problem]:
        multiple, why = self._sample_multiple()
        least = self._least_samples()
        if self.sample_size % multiple:
            below = self.sample_size // multiple * multiple
            nearest = " or ".join(str(size) for size in (below, below + multiple) if size >= least) or str(least)
            message = f"sample_size {self.sample_size} is no multiple of {multiple} ({why})"
            yield Problem(("sample_size",), message, f"nearest: {nearest}", self.sample_size)
        elif self.sample_size < least:
            message = f"sample_size {self.sample_size} is shorter than the model can take, {least}"
            yield Problem(("sample_size",), message, f"nearest: {least}", self.sample_size)
        channels = self._audio_channels()
        if channels and self.audio_channels not in channels.values():
            listed = " and ".join(f"{name} {count}" for name, count in channels.items())
            fix = f"set audio_channels to {next(reversed(channels.values()))}"
            yield Problem(
                ("audio_channels",), f"audio_channels is {self.audio_channels}, but the model has {listed}", fix, self.audio_channels
            )

    def _sample_multiple(self) -> tuple[int, str]:
        """What sample_size must be a multiple of, and the keys that make it so."""
        raise NotImplementedError

    def _least_samples(self) -> int:
        """The shortest sample_size."""
        return self._sample_multiple()[0]

    def _audio_channels(self) -> dict[str, int]:
        """The numbers of channels that audio may have, by the keys that say so; empty: any."""
        raise NotImplementedError


class AutoencoderModel(BaseModelConfig):
    model_type: Literal["autoencoder"]
    model: AutoencoderBody

    def build(self) -> AudioAutoencoder:
        return self.model.build(self.sample_rate)

    def _sample_multiple(self) -> tuple[int, str]:
        return self.model.length_multiple, "what model.encoder and model.pretransform take"

    def _least_samples(self) -> int:
        return self.model.downsampling_ratio

    def _audio_channels(self) -> dict[str, int]:
        return {"in_channels": self.model.in_channels, "out_channels": self.model.out_channels}


class BaseDiffusionCondModel(BaseModelConfig):
    """What the conditional diffusion models share."""

    model: ConditionedDiffusionBody

    def build(self) -> ConditionedDiffusion:
        built = self.model.build(self.sample_rate)
        built.told = self.told
        return built

    @property
    def told(self) -> Told:
        """What training tells the model beside conditions."""
        told = [each for each in (self.training or {}).get("conditions") or () if isinstance(each, Mapping)]
        references = [each for each in told if each.get("type") == "reference"]
        scales = [each.get("time_scale", 1.0) for each in references]
        return Told(len(references) < len(told), tuple(scale if isinstance(scale, int | float) else 1.0 for scale in scales))

    def _sample_multiple(self) -> tuple[int, str]:
        return _denoised_multiple(self.model.diffusion, self.model.pretransform)

    def _least_samples(self) -> int:
        return self.model.downsampling_ratio * self.model.diffusion.min_frames

    def _audio_channels(self) -> dict[str, int]:
        return {} if self.model.pretransform is None else {"the pretransform's io_channels": self.model.pretransform.io_channels}


class DiffusionCondModel(BaseDiffusionCondModel):
    model_type: Literal["diffusion_cond"]


class DiffusionCondInpaintModel(BaseDiffusionCondModel):
    """The same model, which also sees the audio to keep."""

    model_type: Literal["diffusion_cond_inpaint"]

    def _problems(self) -> Iterator[Problem]:
        yield from super()._problems()
        if missing := [name for name in INPAINT_IDS if name not in self.model.diffusion.input_concat_ids]:
            message = f"a diffusion_cond_inpaint model takes {' and '.join(missing)} as input"
            yield Problem(("model", "diffusion", "input_concat_ids"), message, f"add {', '.join(missing)}")


class DiffusionUncondModel(BaseModelConfig):
    model_type: Literal["diffusion_uncond"]
    model: UnconditionalConfig

    @model_validator(mode="before")
    @classmethod
    def _network_is_the_model(cls, value: Any) -> Any:
        model = value.get("model") if isinstance(value, Mapping) else None
        if isinstance(model, Mapping) and "diffusion" in model and "type" not in model:
            message = 'the network of a diffusion_uncond model stands in "model" itself'
            raise ConfigError([Problem(("model", "diffusion"), message, 'move its "type" and "config" up into "model"', on_key=True)])
        return value

    def build(self) -> UnconditionalDiffusion:
        network, pretransform = self.model, self.model.pretransform
        return UnconditionalDiffusion(
            network.build(),
            None if pretransform is None else pretransform.build(self.sample_rate),
            objective=parse_objective(network.diffusion_objective),
            io_channels=network.io_channels,
            sample_rate=self.sample_rate,
            sample_size=self.sample_size,
            min_input_length=network.downsampling_ratio * network.frame_multiple[1],
        )

    def _problems(self) -> Iterator[Problem]:
        yield from super()._problems()
        network, pretransform = self.model, self.model.pretransform
        if pretransform is not None and pretransform.encoded_channels != network.io_channels:
            key, encoded = network.io_channels_key, pretransform.encoded_channels
            message = f"config.{key} is {network.io_channels}, but the pretransform gives {encoded} latent channels"
            yield Problem(("model", "config", key), message, f"set it to {encoded}", network.io_channels)

    def _sample_multiple(self) -> tuple[int, str]:
        return _denoised_multiple(self.model, self.model.pretransform)

    def _least_samples(self) -> int:
        return self.model.downsampling_ratio * self.model.min_frames

    def _audio_channels(self) -> dict[str, int]:
        if self.model.pretransform is not None:
            return {"the pretransform's io_channels": self.model.pretransform.io_channels}
        # More channels than audio has: the data are latents.
        return {self.model.io_channels_key: self.model.io_channels} if self.model.io_channels <= MAX_AUDIO_CHANNELS else {}


class DiffusionAutoencoderModel(BaseModelConfig):
    model_type: Literal["diffusion_autoencoder"]
    model: DiffusionAutoencoderBody

    @property
    def samples_per_frame(self) -> int:
        return self.model.frame_ratio * self.model.pretransform_ratio

    def build(self) -> DiffusionAutoencoder:
        return self.model.build(self.sample_rate)

    def _sample_multiple(self) -> tuple[int, str]:
        body = self.model
        reason = _frames_and_ratio(*body.diffusion.frame_multiple, body.pretransform_ratio)
        if body.encoder is not None and body.encoder.length_multiple > 1:
            reason += f", and the encoder's {body.encoder.ratio_key} {body.encoder.length_multiple}"
        return body.length_multiple, reason

    def _least_samples(self) -> int:
        return self.model.min_samples

    def _audio_channels(self) -> dict[str, int]:
        name, channels = self.model.audio_channels
        return {name: channels}


class LanguageModel(BaseModelConfig):
    model_type: Literal["lm"]
    model: AudioLMBody

    def build(self) -> AudioLanguageModel:
        return self.model.build(self.sample_rate)

    def _sample_multiple(self) -> tuple[int, str]:
        ratio = self.model.downsampling_ratio
        return ratio, f"the pretransform's downsampling ratio {ratio}"

    def _audio_channels(self) -> dict[str, int]:
        return {"the pretransform's io_channels": self.model.pretransform.io_channels}


DiffusionModel = DiffusionCondModel | DiffusionCondInpaintModel | DiffusionUncondModel | DiffusionAutoencoderModel
ModelConfig = Annotated[AutoencoderModel | DiffusionModel | LanguageModel, Field(discriminator="model_type")]
