"""The `loss_configs` block of an autoencoder's training, and the sum of losses it describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.models.discriminators import Discriminator, DiscriminatorConfig
from stable_audio_tools.nn.exact import at_least_single
from stable_audio_tools.nn.reconstruction import MelParams, MultiResolutionMel, MultiResolutionSTFT, SpectralParams
from stable_audio_tools.training.losses.hubert import HubertDistance, HubertLossConfig
from stable_audio_tools.training.losses.terms import LossTerm, bottleneck_terms

DECAY = "factor on the weights with every train step"
DEAD = "accepted, no effect"

DISTILLED = 0.25  # share of the spectral weight that each term of a training with a teacher has, as in upstream
GENERAL_NAMES = {
    "reconstruction": "the reconstruction losses are spectral, time and mrmel, each with weights of its own",
    "adversarial": "give discriminator a type, and weights with adversarial and feature_matching",
}

# What upstream trains with when a config has no `loss_configs`.
SCALES = (2048, 1024, 512, 256, 128, 64, 32)
HOPS = tuple(scale // 4 for scale in SCALES)
DEFAULT: dict[str, Any] = {
    "discriminator": {
        "type": "encodec",
        "config": {"n_ffts": SCALES, "hop_lengths": HOPS, "win_lengths": SCALES, "filters": 32},
        "weights": {"adversarial": 0.1, "feature_matching": 5.0},
    },
    "spectral": {
        "config": {"fft_sizes": SCALES, "hop_sizes": HOPS, "win_lengths": SCALES, "perceptual_weighting": True},
        "weights": {"mrstft": 1.0},
    },
    "time": {"weights": {"l1": 0.0}},
}


class SpectralWeights(StrictModel):
    mrstft: float = Field(ge=0, description="of the multi-resolution STFT loss; left and right count half of it each")


class SpectralLossConfig(StrictModel):
    """Distance of spectra at several resolutions."""

    type: str | None = Field(None, description=DEAD)
    config: SpectralParams
    weights: SpectralWeights
    decay: float = Field(1.0, gt=0, le=1, description=DECAY)


class TimeWeights(StrictModel):
    l1: float = Field(0.0, ge=0, description="of the mean absolute difference of samples")
    l2: float = Field(0.0, ge=0, description="of the mean squared difference of samples")


class TimeLossConfig(StrictModel):
    """Distance of samples."""

    type: str | None = Field(None, description=DEAD)
    config: dict[str, Any] | None = Field(None, description=DEAD)
    weights: TimeWeights
    decay: float = Field(1.0, gt=0, le=1, description=DECAY)


class MelWeights(StrictModel):
    mrmel: float = Field(ge=0, description="of the multi-resolution mel loss")


class MelLossConfig(StrictModel):
    """Distance of mel spectra."""

    type: str | None = Field(None, description=DEAD)
    config: MelParams | None = Field(None, description="needed when the weight is above 0")
    weights: MelWeights

    @model_validator(mode="after")
    def _weighted_means_configured(self) -> Self:
        if self.weights.mrmel and self.config is None:
            fix = "give n_mels, window_lengths, pow, log_weight and mag_weight"
            raise ConfigError([Problem(("config",), "required because weights.mrmel is above 0", fix)])
        return self


class BottleneckWeights(StrictModel):
    """A term that the model's bottleneck lacks must have no weight here; `kl` and `mmd` may, since configs of upstream carry them along."""

    kl: float | None = Field(None, ge=0, description="of the divergence from the standard normal; default 1e-6")
    mmd: float | None = Field(None, ge=0, description="of the maximum mean discrepancy; default 100")
    softnorm: float | None = Field(None, ge=0, description="of softnorm's distance from mean 0 and variance 1; default 0.01")
    quantizer: float | None = Field(None, ge=0, description="of what rvq and rvq_vae report; default 1")
    codebook: float | None = Field(None, ge=0, description="of entries' distance to latents, in dac_rvq(_vae); default 1")
    commitment: float | None = Field(None, ge=0, description="of latents' distance to entries, in dac_rvq(_vae); default 0.25")


class BottleneckLossConfig(StrictModel):
    """Weights of what the bottleneck adds."""

    type: str | None = Field(None, description=DEAD)
    config: dict[str, Any] | None = Field(None, description=DEAD)
    weights: BottleneckWeights


class DistillationWeights(StrictModel):
    """Each is a quarter of `spectral.weights.mrstft` unless given, as is then that of the reconstruction itself."""

    latent_distill: float | None = Field(None, ge=0, description="of the squared distance to the teacher's latents")
    mrstft_distill: float | None = Field(None, ge=0, description="of the reconstruction's distance to the teacher's")
    mrstft_own_latents_teacher: float | None = Field(None, ge=0, description="of what the teacher decodes from the model's latents")
    mrstft_teacher_latents_own: float | None = Field(None, ge=0, description="of what the model decodes from the teacher's latents")


class DistillationLossConfig(StrictModel):
    """Weights of what a teacher adds. They fade as the spectral loss does, by which sounds are compared."""

    weights: DistillationWeights


def _listed(terms: Sequence[str]) -> str:
    return f"only {' and '.join(terms)}" if terms else "no loss of its own"


class AutoencoderLossConfig(StrictModel):
    """All losses of autoencoder training. A block left out is a loss left out; with nothing given, upstream's default applies."""

    spectral: SpectralLossConfig | None = None
    time: TimeLossConfig | None = None
    discriminator: DiscriminatorConfig | None = None
    mrmel: MelLossConfig | None = None
    bottleneck: BottleneckLossConfig | None = None
    hubert: HubertLossConfig | None = None
    distillation: DistillationLossConfig | None = Field(None, description="with a teacher_model: how much it counts")

    @model_validator(mode="before")
    @classmethod
    def _default_of_upstream(cls, value: Any) -> Any:
        return DEFAULT if isinstance(value, Mapping) and not value else value

    @model_validator(mode="before")
    @classmethod
    def _blocks_are_named_after_what_they_compute(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and (wrong := [key for key in GENERAL_NAMES if key in value]):
            raise ConfigError([Problem((key,), f'unknown key "{key}"', GENERAL_NAMES[key], on_key=True) for key in wrong])
        return value

    @model_validator(mode="after")
    def _something_is_reconstructed(self) -> Self:
        weights = [block.weights.model_dump() for block in (self.spectral, self.time, self.mrmel) if block is not None]
        if not any(weight for named in weights for weight in named.values()):
            raise ConfigError([Problem((), "no reconstruction loss", "give spectral, time or mrmel a weight above 0")])
        return self

    @model_validator(mode="after")
    def _sounds_are_compared_somehow(self) -> Self:
        weights = self.distillation.weights.model_dump(exclude_none=True) if self.distillation else {}
        if self.spectral is None and (named := [name for name, weight in weights.items() if weight and name.startswith("mrstft")]):
            fix = "add a spectral block; its weight may be 0"
            what = "sounds are compared as loss_configs.spectral says, which is missing"
            raise ConfigError([Problem(("distillation", "weights", name), what, fix, on_key=True) for name in named])
        return self

    def distillation_terms(self) -> dict[str, LossTerm]:
        """What a teacher adds, by name; terms of weight 0 are left out."""
        weight, decay = (self.spectral.weights.mrstft, self.spectral.decay) if self.spectral else (0.0, 1.0)
        given = self.distillation.weights.model_dump(exclude_none=True) if self.distillation else {}
        weights = {name: given.get(name, DISTILLED * weight) for name in DistillationWeights.model_fields}
        return {name: LossTerm(name, weight, decay) for name, weight in weights.items() if weight}

    def min_samples_at(self, sample_rate: int) -> int:
        """`min_samples` of audio at `sample_rate` Hz, which counts where a loss works at a rate of its own."""
        return max(self.min_samples, self.hubert.min_samples(sample_rate) if self.hubert else 1)

    @property
    def min_samples(self) -> int:
        """The shortest audio, in samples, that every loss can compare."""
        spectral = self.spectral.config.min_samples if self.spectral else 1
        mel = self.mrmel.config.min_samples if self.mrmel and self.mrmel.config else 1
        return max(spectral, mel, self.discriminator.min_samples if self.discriminator else 1)

    def audio_problems(self, sample_rate: int, channels: int) -> list[Problem]:
        """What does not fit audio at `sample_rate` Hz with `channels` channels: weights of stereo, what the discriminator says."""
        found = []
        set_keys = self.spectral.config.model_fields_set if self.spectral else set()
        if channels != 2 and (stereo := sorted({"w_sum", "w_diff"} & set_keys)):
            what = f"only stereo has a sum and a difference, this audio has {channels} channel{'s' if channels > 1 else ''}"
            found = [Problem(("spectral", "config", key), what, "remove the key", on_key=True) for key in stereo]
        if self.discriminator is not None:
            theirs = self.discriminator.audio_problems(sample_rate, channels)
            found += [replace(problem, path=("discriminator", *problem.path)) for problem in theirs]
        return found

    def bottleneck_problems(self, terms: Sequence[str]) -> list[Problem]:
        """The weights that cannot act, of a model whose bottleneck adds `terms` to the loss."""
        given = self.bottleneck.weights.model_fields_set if self.bottleneck else set()
        what = f"the model's bottleneck has {_listed(terms)}"
        dead = sorted(given - {"kl", "mmd", *terms})
        return [Problem(("bottleneck", "weights", name), f"no effect: {what}", "remove the key", on_key=True) for name in dead]

    def build(self, sample_rate: int, channels: int, *, distills: bool = False) -> AutoencoderLosses:
        """The losses of audio at `sample_rate` Hz with `channels` channels.

        Args:
            distills: there is a teacher, whose terms share the weight of the spectral loss.

        Raises:
            ConfigError: something does not fit that audio, see `audio_problems`.
        """
        if problems := self.audio_problems(sample_rate, channels):
            raise ConfigError(problems)
        return AutoencoderLosses(self, sample_rate, distills=distills)

    def build_discriminator(self, sample_rate: int, channels: int) -> Discriminator | None:
        """The discriminator of audio at `sample_rate` Hz with `channels` channels, if there is one."""
        return None if self.discriminator is None else self.discriminator.build(sample_rate, channels)


class AutoencoderLosses(nn.Module):
    """Reconstruction and bottleneck losses, each a weighted scalar; the discriminator's come from the discriminator."""

    def __init__(self, config: AutoencoderLossConfig, sample_rate: int, *, distills: bool = False):
        super().__init__()
        spectral, time, mel, hubert = config.spectral, config.time, config.mrmel, config.hubert
        self.stft = MultiResolutionSTFT(spectral.config, sample_rate) if spectral and spectral.weights.mrstft else None
        self.mel = MultiResolutionMel(mel.config, sample_rate) if mel and mel.config and mel.weights.mrmel else None
        self.hubert = HubertDistance(hubert.config, sample_rate) if hubert and hubert.weights.hubert else None
        self.terms: dict[str, LossTerm] = {}
        if spectral:
            weight = spectral.weights.mrstft
            sides = {} if distills else {"stft_left": weight / 2, "stft_right": weight / 2}
            self._add({"mrstft": DISTILLED * weight if distills else weight, **sides}, spectral.decay)
        if time:
            self._add(time.weights.model_dump(), time.decay)
        if mel:
            self._add(mel.weights.model_dump())
        if hubert:
            self._add(hubert.weights.model_dump(), hubert.decay)
        self.bottleneck_weights = config.bottleneck.weights.model_dump(exclude_none=True) if config.bottleneck else {}

    def _add(self, weights: Mapping[str, float], decay: float = 1.0) -> None:
        self.terms |= {name: LossTerm(name, weight, decay) for name, weight in weights.items() if weight}

    def load(self) -> None:
        """Read, and where need be download, the weights of what losses listen with. Called before training."""
        if self.hubert is not None:
            self.hubert.load()

    def forward(self, reals: Tensor, decoded: Tensor, info: Mapping[str, Any], step: int = 0) -> dict[str, Tensor]:
        """Weighted scalars by name; their sum is the loss. Terms of weight 0 are not computed.

        Args:
            reals: (B, C, T) originals.
            decoded: (B, C, T) reconstructions.
            info: what the bottleneck reported.
            step: train steps done, for weights that fade.
        """
        values: dict[str, Tensor] = {}
        if self.stft is not None:
            values |= self.stft(reals, decoded)
        if self.mel is not None:
            values["mrmel"] = self.mel(reals, decoded)
        if self.hubert is not None:
            values["hubert"] = self.hubert(reals, decoded)
        if "l1" in self.terms:
            values["l1"] = F.l1_loss(at_least_single(decoded), at_least_single(reals))
        if "l2" in self.terms:
            values["l2"] = F.mse_loss(at_least_single(decoded), at_least_single(reals))
        weighted = {name: self.terms[name](value, step) for name, value in values.items() if name in self.terms}
        return weighted | bottleneck_terms(info, self.bottleneck_weights)
