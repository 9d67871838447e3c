"""Optimizers and schedulers from JSON: `{"optimizer": {"type", "config"}, "scheduler": {"type", "config"}}` for each player.

`type` is the name of a class of `torch.optim` or `torch.optim.lr_scheduler`, or one of the classes below; `config` holds its
keyword arguments, with torch's defaults. Both are tried on one number when the config is read, so a wrong name, argument or
value is found before a weight exists. Schedulers step once per train step.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, model_validator
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.configs.suggest import closest, did_you_mean

if TYPE_CHECKING:
    from stable_audio_tools.training.sections import TrainingConfig

log = logging.getLogger(__name__)

UNFIT = {
    "LBFGS": "it needs to compute the loss several times a step",
    "SparseAdam": "it takes sparse gradients only",
    "Muon": "it takes matrices only, and every model here has other weights too",
    "LambdaLR": "it needs a function, which JSON cannot hold",
    "MultiplicativeLR": "it needs a function, which JSON cannot hold",
    "SequentialLR": "it needs other schedulers",
    "ChainedScheduler": "it needs other schedulers",
    "ReduceLROnPlateau": "it needs a validation loss, and schedulers step with the training here",
}
"""Names of torch that exist and cannot work here, and why."""


class FusedAdam(torch.optim.Adam):
    """The name that configs made for DeepSpeed use: torch's Adam with DeepSpeed's arguments.

    Args:
        adam_w_mode: decoupled weight decay, as AdamW has it. arXiv:1711.05101
    """

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        fused: bool | None = None,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, fused=fused, decoupled_weight_decay=adam_w_mode)


class InverseLR(LRScheduler):
    """Inverse power decay with exponential warm-up.

    At step n: lr = (1 - warmup^(n+1)) * max(final_lr, base * (1 + n / inv_gamma)^-power).

    Args:
        inv_gamma: steps after which the rate has fallen to 2^-power of its base.
        power: 1 halves the rate at `inv_gamma` steps, 0.5 takes it to 0.71.
        warmup: in [0, 1); 0.99 reaches 63 % of the rate after 100 steps, 0 starts at the full rate.
        final_lr: the rate never decays below it.
    """

    def __init__(self, optimizer: Optimizer, inv_gamma: float = 1.0, power: float = 1.0, warmup: float = 0.0, final_lr: float = 0.0):
        if inv_gamma <= 0:
            raise ValueError(f"inv_gamma must be above 0, got {inv_gamma}")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup must be at least 0 and below 1, got {warmup}")
        if final_lr < 0:
            raise ValueError(f"final_lr must be at least 0, got {final_lr}")
        self.inv_gamma, self.power, self.warmup, self.final_lr = inv_gamma, power, warmup, final_lr
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        n = self.last_epoch
        decay = (1 + n / self.inv_gamma) ** -self.power
        return [(1 - self.warmup ** (n + 1)) * max(self.final_lr, base * decay) for base in self.base_lrs]


class WarmupStableDecay(LRScheduler):
    """Linear warm-up, a plateau, and a linear decay (Hu et al. 2024, arXiv:2404.06395, section 4.2); the last rate then stays.

    Args:
        total_steps: where the decay ends; training may go on.
        warmup_steps: steps to the full rate.
        decay_start: share of `total_steps` at which the decay starts.
        final_ratio: the last rate, as a share of the full one.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, decay_start: float = 0.6, final_ratio: float = 0.0):
        if not 0 <= decay_start < 1 or not 0 <= final_ratio <= 1:
            raise ValueError(f"decay_start {decay_start} must be in [0, 1) and final_ratio {final_ratio} in [0, 1]")
        if not 0 <= warmup_steps <= decay_start * total_steps:
            raise ValueError(f"warmup_steps {warmup_steps} must end before the decay starts, at step {decay_start * total_steps:g}")
        self.total_steps, self.warmup_steps, self.decay_start, self.final_ratio = total_steps, warmup_steps, decay_start, final_ratio
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        n, start = self.last_epoch, self.decay_start * self.total_steps
        warm = min(1.0, (n + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        decayed = min(1.0, max(0.0, (n - start) / (self.total_steps - start)))
        return [base * warm * (1 - decayed * (1 - self.final_ratio)) for base in self.base_lrs]


def _classes(module: Any, base: type, *ours: type) -> dict[str, type]:
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)]
    return {c.__name__: c for c in (*found, *ours) if c is not base and not c.__name__.startswith("_") and c.__name__ not in UNFIT}


OPTIMIZERS: dict[str, type[Optimizer]] = _classes(torch.optim, Optimizer, FusedAdam)
SCHEDULERS: dict[str, type[LRScheduler]] = _classes(torch.optim.lr_scheduler, LRScheduler, InverseLR, WarmupStableDecay)
RUNTIME = frozenset({"self", "params", "optimizer", "last_epoch"})
"""Constructor arguments that are not the config's to give."""

Arguments = dict[str, Any]


class OptimizerConfig(StrictModel):
    """An optimizer by its class name."""

    type: str = Field(description="class of torch.optim, or FusedAdam")
    config: Arguments = Field({}, description="its keyword arguments, such as lr, betas, weight_decay; torch's defaults hold for the rest")

    @model_validator(mode="after")
    def _can_be_built(self) -> OptimizerConfig:
        _check(self.type, self.config, OPTIMIZERS, "optimizer")
        _try(lambda: self.build([_trial_weight()]))
        return self

    def build(self, params: Iterable[Parameter]) -> Optimizer:
        """The optimizer over `params`; the fused kernel unless the config chooses another one."""
        params = list(params)
        kind = OPTIMIZERS[self.type]
        return kind(params, **_kernel(kind, self.config, params), **_tuples(self.config))


class SchedulerConfig(StrictModel):
    """A learning-rate schedule by its class name, counted in train steps."""

    type: str = Field(description="class of torch.optim.lr_scheduler, InverseLR or WarmupStableDecay")
    config: Arguments = Field({}, description="its keyword arguments; torch's defaults hold for the rest")

    @model_validator(mode="after")
    def _can_be_built(self) -> SchedulerConfig:
        _check(self.type, self.config, SCHEDULERS, "scheduler")
        optimizer = torch.optim.SGD([_trial_weight()], lr=1.0, momentum=0.9)
        _try(lambda: _two_steps(optimizer, self.build(optimizer)))
        return self

    def build(self, optimizer: Optimizer) -> LRScheduler:
        return SCHEDULERS[self.type](optimizer, **_tuples(self.config))


class OptimizerGroup(StrictModel):
    """How one player's weights move."""

    optimizer: OptimizerConfig
    scheduler: SchedulerConfig | None = Field(None, description="default: the rate stays as it is")

    @model_validator(mode="after")
    def _fit_each_other(self) -> OptimizerGroup:
        """Some schedules move more than the rate and need an optimizer that has it, such as a momentum."""
        _try(lambda: _two_steps(*self.build([_trial_weight()])), ("scheduler", "config"))
        return self

    def build(self, params: Iterable[Parameter]) -> tuple[Optimizer, LRScheduler | None]:
        """Optimizer and scheduler over the weights that train."""
        optimizer = self.optimizer.build(params)
        return optimizer, self.scheduler.build(optimizer) if self.scheduler else None


SHORTHAND: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "autoencoder": ("AdamW", {"betas": (0.8, 0.99)}),
    "discriminator": ("AdamW", {"betas": (0.8, 0.99)}),
    "diffusion": ("Adam", {}),
    "lm": ("AdamW", {"betas": (0.9, 0.95), "weight_decay": 0.1}),
}
"""What `learning_rate` alone stands for, by player; published recipes rely on it."""


def default_optimizers(training: TrainingConfig, *players: str) -> dict[str, OptimizerGroup]:
    """The optimizer of each player: from `optimizer_configs`, else the one that `learning_rate` stands for."""
    if training.optimizer_configs is None:
        return {player: _shorthand(player, training.learning_rate) for player in players}
    if training.learning_rate is not None:
        log.warning("learning_rate %g has no effect: optimizer_configs is given and wins", training.learning_rate)
    return {player: training.optimizer_configs[player] for player in players}


def _shorthand(player: str, learning_rate: float | None) -> OptimizerGroup:
    kind, config = SHORTHAND[player]
    return OptimizerGroup.model_validate({"optimizer": {"type": kind, "config": {"lr": learning_rate, **config}}})


def _kernel(kind: type[Optimizer], config: Arguments, params: list[Parameter]) -> Arguments:
    """`fused=True` where torch has that kernel for these weights.

    Measured on a CPU with AdamW: 2.2 to 6 times as fast as torch's default from 1000 tensors of 16 numbers to 20 of a million.
    """
    chosen = {"fused", "foreach", "differentiable"} & set(config)
    fits = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params)
    # Torch's fused SGD takes no weights shared out among processes, and on a CPU steps bfloat16 wrongly (torch 2.11).
    plain = all(p.dtype == torch.float32 and not isinstance(p, DTensor) for p in params)
    kinds = torch.optim.Adam | torch.optim.SGD if plain else torch.optim.Adam
    return {"fused": True} if fits and not chosen and issubclass(kind, kinds) else {}


def _check(name: str, config: Arguments, known: Mapping[str, type], what: str) -> None:
    """Check a class name and the names and kinds of its arguments.

    Raises:
        ConfigError: all that is wrong, with paths relative to the object that holds `type` and `config`.
    """
    if name in UNFIT:
        raise ConfigError([Problem(("type",), f'{what} "{name}" cannot be used here: {UNFIT[name]}', f"known: {', '.join(known)}", name)])
    if name not in known:
        raise ConfigError([Problem(("type",), f'unknown {what} "{name}"', did_you_mean(name, known), name)])
    signature = inspect.signature(known[name]).parameters
    parameters = {key: parameter for key, parameter in signature.items() if key not in RUNTIME}
    problems = [problem for key, value in config.items() if (problem := _argument_problem(name, key, value, parameters))]
    meant = {closest(key, parameters) for key in config if key not in parameters}
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in config and key not in meant:
            problems.append(Problem(("config", key), f'missing key "{key}"', f"{name} needs it"))
    if problems:
        raise ConfigError(problems)


def _argument_problem(name: str, key: str, value: Any, parameters: Mapping[str, inspect.Parameter]) -> Problem | None:
    path = ("config", key)
    if key not in parameters:
        near = closest(key, parameters)
        fix = f'did you mean "{near}"?' if near else f"known keys: {', '.join(parameters)}"
        return Problem(path, f"unknown key {value_text(key)} of {name}", fix, on_key=True)
    expected = _expected(value, parameters[key])
    return Problem(path, f"expected {expected}, got {value_text(value)}", _quotes_fix(value), value) if expected else None


def _expected(value: Any, parameter: inspect.Parameter) -> str:
    """What should stand in `value`'s place, judged by torch's signature; nothing if the value may do."""
    default = parameter.default
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, str):
        return "" if isinstance(value, str) else "a text"
    if isinstance(default, tuple):
        fits = isinstance(value, (list, tuple)) and len(value) == len(default)
        fits = fits and all(_is_number(item) or item is d is None for item, d in zip(value, default, strict=True))
        return "" if fits else f"a list of {len(default)} numbers"
    if isinstance(default, (int, float)) and "list" not in str(parameter.annotation):
        return "" if _is_number(value) else "a number"
    return "a number" if isinstance(value, (str, dict)) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _quotes_fix(value: Any) -> str:
    try:
        return f"remove the quotes: {value}" if isinstance(value, str) and float(value) is not None else ""
    except ValueError:
        return ""


def _try(build: Callable[[], Any], path: tuple[str, ...] = ("config",)) -> None:
    """Report what torch refuses, in torch's words."""
    try:
        build()
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError, AssertionError) as error:
        raise ConfigError([Problem(path, f"torch refuses it: {error}")]) from error


def _two_steps(optimizer: Optimizer, scheduler: LRScheduler | None) -> None:
    for _ in range(2):
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def _trial_weight() -> Parameter:
    return Parameter(torch.zeros(1, 1, device="cpu"))


def _tuples(config: Arguments) -> Arguments:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
