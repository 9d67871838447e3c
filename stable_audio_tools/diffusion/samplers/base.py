"""What samplers share: the field they follow, what they tell a callback, where their noise comes from.

A sampler is one function

    sample(field, x, ts, *, objective, generator=None, callback=None, **options) -> x

that carries x (B, C, T) from noise level ts[0] to ts[-1] along the path of `objective`. `ts` is a decreasing (steps + 1,) tensor
on the CPU; its float64 values stay Python numbers, so no step waits for the device. Fresh noise is drawn once a step from
`generator`: with one for each item, a clip is the same in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..objectives import Objective


class Prediction(NamedTuple):
    """What the model says at (x, t), read three ways; guidance is already inside.

    output: (B, C, T) as the objective defines it, the velocity.
    x0: (B, C, T) the clean data it implies.
    noise: (B, C, T) the noise it implies; of the unconditional output where the guidance is CFG++.
    """

    output: Tensor
    x0: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Step:
    """Told to a callback after each model evaluation that opens a step.

    index: of the step, from 0; of samplers that choose their own steps, how much of the path is done, in the steps asked for.
    t: its noise level, the highest of the batch. x: (B, C, T) the state at t. x0: the clean data predicted from it.
    """

    index: int
    t: float
    x: Tensor
    x0: Tensor


Generators = torch.Generator | Sequence[torch.Generator] | None
"""One generator for the batch, one for each item, or None for the global one."""

Field = Callable[[Tensor, Tensor], Prediction]
"""field(x (B, C, T), t (B,)) -> Prediction."""

Callback = Callable[[Step], None]


SampleFunction = Callable[..., Tensor]
"""The shape above."""


def make_field(model: Callable[[Tensor, Tensor], Tensor], objective: Objective) -> Field:
    """The field of a network `model(x, t) -> output` trained with `objective`."""

    def field(x: Tensor, t: Tensor) -> Prediction:
        output = model(x, t)
        return Prediction(output, objective.denoised(x, output, t), objective.noise(x, output, t))

    return field


class At(Protocol):
    """The field at a noise level given as a number; with the index of a step, its callback hears of the prediction."""

    def __call__(self, x: Tensor, t: float, step: int | None = None) -> Prediction: ...


def steps(field: Field, ts: Tensor, callback: Callback | None = None) -> tuple[At, Iterator[tuple[int, float, float]]]:
    """`field` as a sampler asks it, and (index, t, next t) of each step."""

    def at(x: Tensor, t: float, step: int | None = None) -> Prediction:
        # float16 and bfloat16 cannot tell neighbouring noise levels apart.
        dtype = torch.promote_types(x.dtype, torch.float32)
        prediction = field(x, torch.full((x.shape[0],), t, device=x.device, dtype=dtype))
        if callback is not None and step is not None:
            callback(Step(step, t, x, prediction.x0))
        return prediction

    levels = ts.double().tolist()
    return at, ((index, t, levels[index + 1]) for index, t in enumerate(levels[:-1]))


def noise_like(x: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal noise of x's shape, device and dtype.

    Drawn in float32 on the generator's device, so a CPU generator gives the same noise for every device and precision; with
    one generator for each item, an item's noise does not depend on its batch.

    Raises:
        ValueError: as many generators as items are needed.
    """
    if generator is None:
        return torch.randn_like(x)
    if isinstance(generator, torch.Generator):
        return torch.randn(x.shape, generator=generator, device=generator.device).to(x)
    if len(generator) != x.shape[0]:
        raise ValueError(f"{len(generator)} generators for a batch of {x.shape[0]}; give one for each item")
    return torch.stack([torch.randn(x.shape[1:], generator=each, device=each.device) for each in generator]).to(x)
