"""Where training looks along the noise path: distributions of the timestep t, and shifts of it by sequence length.

t = 0 is data, t = 1 is noise. A sampler draws t for a batch; a shift then moves t towards noise, in training, demos and
generation alike. logSNR here is log((1 - t) / t), the flow path's amplitude ratio, whatever the objective.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor

from stable_audio_tools.configs.base import Family, StrictModel, check_order
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate

from .seeds import derive_seed


class TimestepSampler(ABC):
    """Draws training timesteps."""

    @abstractmethod
    def sample(self, batch: int, *, length: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draw t.

        Args:
            batch: how many.
            length: latent frames of the batch's items; only `shifted_logit_normal` needs it.
            generator: source of randomness, default the global one; `uniform` carries its own state and draws from neither.

        Returns:
            (batch,) float32 in [0, 1], on the CPU.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, int]:
        """What resuming needs beyond the random generator's state."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from `state_dict()`; the state of another kind of sampler leaves this one at its start."""


class TimestepSamplerConfig(StrictModel, ABC):
    """`timestep_sampler` names the distribution; its other fields are `timestep_sampler_options`."""

    timestep_sampler: str

    @abstractmethod
    def build(self, *, seed: int = 0, rank: int = 0) -> TimestepSampler:
        """The sampler; `seed` and `rank` matter to those with a sequence of their own."""


class StatelessSampler(TimestepSamplerConfig, TimestepSampler):
    """A distribution that draws from the generator it is given: the config is the sampler."""

    def build(self, *, seed: int = 0, rank: int = 0) -> TimestepSampler:
        return self

    def sample(self, batch: int, *, length: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.draw(batch, length, generator).float()

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Nothing to restore: the generator holds it all."""

    @abstractmethod
    def draw(self, batch: int, length: int | None, generator: torch.Generator | None) -> Tensor:
        """(batch,) float64: the tails of these distributions need it."""


class UniformConfig(TimestepSamplerConfig):
    """Uniform on [0, 1] by a scrambled Sobol sequence: every batch covers the range evenly."""

    timestep_sampler: Literal["uniform"] = "uniform"

    def build(self, *, seed: int = 0, rank: int = 0) -> TimestepSampler:
        return SobolSampler(seed, rank)


class SobolSampler(TimestepSampler):
    """A scrambled Sobol sequence in one dimension (Owen 1998).

    Its state is the seed and the number drawn. The rank is not part of the state, so one checkpoint loaded on every rank
    still gives each its own scramble.
    """

    def __init__(self, seed: int = 0, rank: int = 0):
        self.rank = rank
        self._restart(seed, drawn=0)

    def sample(self, batch: int, *, length: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.drawn += batch
        return self._engine.draw(batch, dtype=torch.float32)[:, 0]

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        if state:
            self._restart(int(state["seed"]), int(state["drawn"]))

    def _restart(self, seed: int, drawn: int) -> None:
        self.seed, self.drawn = seed, drawn
        self._engine = torch.quasirandom.SobolEngine(1, scramble=True, seed=derive_seed(seed, self.rank))
        if drawn:
            self._engine.fast_forward(drawn)


class LogitNormal(StatelessSampler):
    """t = sigmoid(N(mean, std)). Esser et al. 2024, arXiv:2403.03206, section 3.1."""

    timestep_sampler: Literal["logit_normal"] = "logit_normal"
    mean: float = Field(0.0, description="of the logit; positive is towards noise")
    std: float = Field(1.0, gt=0, description="of the logit")

    def draw(self, batch: int, length: int | None, generator: torch.Generator | None) -> Tensor:
        return torch.sigmoid(self.mean + self.std * _normal(batch, generator))


class TruncatedLogitNormal(StatelessSampler):
    """1 - r, where r is a standard logit-normal cut to [0.075, 1] and stretched to [0, 1]; the numbers are upstream's."""

    timestep_sampler: Literal["trunc_logit_normal"] = "trunc_logit_normal"

    def draw(self, batch: int, length: int | None, generator: torch.Generator | None) -> Tensor:
        cut = 0.075
        lowest = torch.special.ndtr(torch.logit(torch.tensor(cut, dtype=torch.float64)))
        quantile = lowest + (1 - lowest) * _uniform(batch, generator)
        return 1 - (torch.sigmoid(torch.special.ndtri(quantile)) - cut) / (1 - cut)


class LogSNRNormal(StatelessSampler):
    """t whose logSNR is N(mean, std), kept within [1e-4, 1 - 1e-4]. After Karras et al. 2022, arXiv:2206.00364, section 5."""

    timestep_sampler: Literal["log_snr"] = "log_snr"
    mean_logsnr: float = -1.2
    std_logsnr: float = Field(2.0, gt=0)

    def draw(self, batch: int, length: int | None, generator: torch.Generator | None) -> Tensor:
        logsnr = self.mean_logsnr + self.std_logsnr * _normal(batch, generator)
        return torch.sigmoid(-logsnr).clamp(1e-4, 1 - 1e-4)


class LogSNRUniform(StatelessSampler):
    """t whose logSNR is uniform."""

    timestep_sampler: Literal["log_snr_uniform", "logsnr_uniform"] = "log_snr_uniform"
    min_logsnr: float = -6.0
    max_logsnr: float = 5.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        check_order(self, "min_logsnr", "max_logsnr")
        return self

    def draw(self, batch: int, length: int | None, generator: torch.Generator | None) -> Tensor:
        logsnr = self.min_logsnr + (self.max_logsnr - self.min_logsnr) * _uniform(batch, generator)
        return torch.sigmoid(-logsnr)


class ShiftedLogitNormal(StatelessSampler):
    """Logit-normal whose mean grows linearly with the sequence length, stretched to reach both ends, with a uniform share.

    The 0.5 % and 99.9 % quantiles are moved to 0 and 1, what falls below `eps` is reflected, and a share `uniform_prob` is
    uniform on [eps, 1]. The recipe and its numbers are those of the LTX-2 trainer; the length anchors are for its video
    tokens, so set them to the range of your latents.
    """

    timestep_sampler: Literal["shifted_logit_normal"] = "shifted_logit_normal"
    min_tokens: int = Field(1024, gt=0, description="latent frames at which the mean is min_shift")
    max_tokens: int = Field(4096, gt=0, description="latent frames at which the mean is max_shift; the line goes on beyond both")
    min_shift: float = 0.95
    max_shift: float = 2.05
    std: float = Field(1.0, gt=0, description="of the logit")
    eps: float = Field(1e-3, gt=0, lt=0.5, description="smallest t, nearly")
    uniform_prob: float = Field(0.1, ge=0, le=1, description="share drawn uniformly")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        check_order(self, "min_tokens", "max_tokens")
        return self

    def draw(self, batch: int, length: int | None, generator: torch.Generator | None) -> Tensor:
        if length is None:
            raise ValueError("timestep sampler 'shifted_logit_normal' depends on the sequence length; pass length=")
        mean = self.min_shift + (self.max_shift - self.min_shift) * (length - self.min_tokens) / (self.max_tokens - self.min_tokens)
        t = torch.sigmoid(mean + self.std * _normal(batch, generator))
        # The 0.5 % and 99.9 % quantiles of N(0, 1).
        low, high = (1 / (1 + math.exp(-(mean + z * self.std))) for z in (-2.5758, 3.0902))
        t = (t - low) / (high - low)
        t = torch.where(t < self.eps, 2 * self.eps - t, t).clamp(0, 1)
        uniform = self.eps + (1 - self.eps) * _uniform(batch, generator)
        return torch.where(_uniform(batch, generator) < self.uniform_prob, uniform, t)


class CosineMap(StatelessSampler):
    """t that gives a flow the logSNR distribution of a cosine schedule with uniform steps. arXiv:2403.03206, section 3.1, "CosMap"."""

    timestep_sampler: Literal["cosine"] = "cosine"

    def draw(self, batch: int, length: int | None, generator: torch.Generator | None) -> Tensor:
        return 1 - 1 / (1 + torch.tan(math.pi / 2 * _uniform(batch, generator)))


def _normal(batch: int, generator: torch.Generator | None) -> Tensor:
    return torch.randn(batch, generator=generator, dtype=torch.float64)


def _uniform(batch: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(batch, generator=generator, dtype=torch.float64)


TIMESTEP_SAMPLERS = Family(
    "timestep sampler",
    UniformConfig,
    LogitNormal,
    TruncatedLogitNormal,
    LogSNRNormal,
    LogSNRUniform,
    ShiftedLogitNormal,
    CosineMap,
    key="timestep_sampler",
)


def parse_timestep_sampler(name: str, options: Mapping[str, Any] | None = None, *, seed: int = 0, rank: int = 0) -> TimestepSampler:
    """The sampler that `timestep_sampler` and `timestep_sampler_options` describe.

    Args:
        seed, rank: choose the Sobol sequence of `uniform`; give every rank of a run its own.

    Raises:
        ConfigError: there is no such sampler, or it does not take one of the options.
    """
    config = validate(Annotated[StrictModel, TIMESTEP_SAMPLERS], {**(options or {}), "timestep_sampler": name}, "timestep_sampler_options")
    return config.build(seed=seed, rank=rank)


class DistributionShift(StrictModel, ABC):
    """A monotone map of [0, 1] onto itself that spends more of the path near noise, the more so the longer the sequence."""

    type: str

    def build(self) -> DistributionShift:
        return self

    @abstractmethod
    def shift(self, t: Tensor, length: int) -> Tensor:
        """Shifted t, of t's shape and dtype; 0 and 1 stay exactly where they are.

        Args:
            length: latent frames.

        Raises:
            ConfigError: the shift is not for sequences of this length.
        """


class LengthShift(DistributionShift):
    """Upstream's: a shift by exp(s), where s goes linearly from base_shift to max_shift with the clamped length.

    The form is that of Flux, after Esser et al. 2024, arXiv:2403.03206, section 5.3.2.
    """

    type: Literal["length", "full"] = "length"
    base_shift: float = 0.5
    max_shift: float = 1.15
    min_length: int = Field(256, gt=0, description="latent frames at and below which the shift is base_shift")
    max_length: int = Field(4096, gt=0, description="latent frames at and above which the shift is max_shift")
    use_sine: bool = Field(False, description="warp the result by sin(pi t / 2), further towards noise")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _ordered_lengths(self)

    def shift(self, t: Tensor, length: int) -> Tensor:
        position = (_clamp(length, self.min_length, self.max_length) - self.min_length) / (self.max_length - self.min_length)
        t = _scale_odds(t, math.exp(self.base_shift + (self.max_shift - self.base_shift) * position))
        return torch.sin(t * (math.pi / 2)) if self.use_sine else t


class ConstantShift(DistributionShift):
    """t' = s t / (1 + (s - 1) t), whatever the length. arXiv:2403.03206, equation 23."""

    type: Literal["constant"] = "constant"
    factor: float = Field(gt=0, alias="shift", description="factor on the odds t / (1 - t); above 1 is towards noise")

    def shift(self, t: Tensor, length: int) -> Tensor:
        return _scale_odds(t, self.factor)

    @model_serializer(mode="wrap")
    def _by_json_name(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"shift" if key == "factor" else key: value for key, value in handler(self).items()}


class FluxShift(DistributionShift):
    """The same form with a factor that follows a power law of the clamped length, from alpha_min to alpha_max."""

    type: Literal["flux"] = "flux"
    min_length: int = Field(256, gt=0, description="latent frames at and below which the factor is alpha_min")
    max_length: int = Field(4096, gt=0, description="latent frames at and above which the factor is alpha_max")
    alpha_min: float = Field(1.0, gt=0)
    alpha_max: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return _ordered_lengths(self)

    def shift(self, t: Tensor, length: int) -> Tensor:
        length = _clamp(length, self.min_length, self.max_length)
        position = math.log(length / self.min_length) / math.log(self.max_length / self.min_length)
        return _scale_odds(t, self.alpha_min * (self.alpha_max / self.alpha_min) ** position)


class LogSNRShift(DistributionShift):
    """Uniform t becomes uniform logSNR, from logsnr_end at t = 0 down to a start that falls by `rate` per doubling of the length.

    The two ends themselves stay at 0 and 1, so the map jumps there.
    """

    type: Literal["logsnr"] = "logsnr"
    anchor_length: int = Field(2000, gt=0, description="latent frames at which the path starts at anchor_logsnr")
    anchor_logsnr: float = -6.2
    rate: float = Field(1.0, ge=0, description="how far the start falls per doubling of the length")
    logsnr_end: float = 2.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        check_order(self, "anchor_logsnr", "logsnr_end")
        return self

    def shift(self, t: Tensor, length: int) -> Tensor:
        start = self.anchor_logsnr - self.rate * math.log2(length / self.anchor_length)
        if start >= self.logsnr_end:
            raise ConfigError(
                f"distribution shift 'logsnr' starts at logSNR {start:.2f} for a length of {length}, not below its logsnr_end "
                f"{self.logsnr_end}; raise logsnr_end, or lower rate, anchor_logsnr or anchor_length"
            )
        shifted = torch.sigmoid(t * (self.logsnr_end - start) - self.logsnr_end)
        return torch.where((t <= 0) | (t >= 1), t, shifted)


class NoShift(DistributionShift):
    """t as it is."""

    type: Literal["none"] = "none"

    def shift(self, t: Tensor, length: int) -> Tensor:
        return t


def _scale_odds(t: Tensor, factor: float) -> Tensor:
    # The textbook form factor t / (1 + (factor - 1) t) rounds t = 1 to something else for some factors.
    return t / (t + (1 - t) / factor)


def _clamp(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def _ordered_lengths(config: Any) -> Any:
    check_order(config, "min_length", "max_length")
    return config


class _ShiftFamily(Family):
    def _default_tag(self) -> str:
        return "length"  # published configs have no type


DISTRIBUTION_SHIFTS = _ShiftFamily("distribution shift", LengthShift, ConstantShift, FluxShift, LogSNRShift, NoShift)
DistributionShiftConfig = Annotated[DistributionShift, DISTRIBUTION_SHIFTS]
"""The annotation of `distribution_shift_options`; a validated value is the shift itself."""
