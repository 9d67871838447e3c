"""Conditioners turn metadata into vectors for a denoiser; `MultiConditioner` runs all of a model's.

B batch, N tokens, D width, C channels, T frames. Masks are bool, True = real.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.models.pretransforms.base import BasePretransformConfig

Metadata = Mapping[str, Any]
Form = Literal["vector", "tokens", "signal"]
ValueKind = Literal["text", "a number", "a whole number", "anything"]


class Condition(NamedTuple):
    """What one conditioner says about a batch.

    tensor: tokens (B, N, D) for cross-attention and prepending, or a signal (B, C, T) for input concatenation.
    mask: (B, N), which tokens are real; None: all.
    pooled: (B, D), all of it in one vector, for the global route and, constant over time, for input concatenation.
    null: (1, D), the learned `pooled` of "nothing said". It stands in when the condition is dropped for guidance; a condition
        without one, such as a duration, stays on those two routes when others are dropped.
    """

    tensor: Tensor
    mask: Tensor | None
    pooled: Tensor | None = None
    null: Tensor | None = None


class Conditioner(nn.Module, ABC):
    """One kind of metadata as a `Condition`, in two steps: `prepare` on the CPU, then the module's own call on its device."""

    def prepare(self, values: Sequence[Any]) -> Any:
        """B metadata values as one object with `.to(device)`: a tensor (B, ...) on the CPU, unless `collate` makes another.

        Raises:
            ValueError: a value is of the wrong kind; the message names its place in the batch.
        """
        rows = []
        for index, value in enumerate(values):
            try:
                rows.append(self.parse(value))
            except ValueError as error:
                raise ValueError(f"item {index}: {error}") from None
        return self.collate(rows)

    @abstractmethod
    def parse(self, value: Any) -> Any:
        """One value as a row of the prepared batch.

        Raises:
            ValueError: a value of the wrong kind.
        """

    def collate(self, rows: Sequence[Any]) -> Any:
        """B parsed values as one object with `.to(device)`.

        Raises:
            ValueError: the values do not fit each other.
        """
        return torch.stack(list(rows))

    @abstractmethod
    def forward(self, prepared: Any) -> Condition:
        """The condition of a prepared batch."""

    def stand_in(self) -> None:
        """Never load the pretrained network, if there is one: give zeros of its shape. For plans, which need shapes alone."""


class ConditionerParams(StrictModel):
    """Keys that the `config` of every conditioner has."""

    output_dim: PositiveInt | None = Field(default=None, description="width of this condition; default: the cond_dim of all")


class BaseConditionerConfig(StrictModel):
    """An entry of `conditioning.configs`.

    tokens, pooled (of `build`): which routes the model takes it by. Parts for other routes are not built, since weights that
    no gradient reaches stop distributed training.

    needs: what of the model around it `build` takes as further keyword arguments: "pretransform" (or None), "sample_rate" in Hz.
    reads: what metadata it accepts, as far as that can be told before it is built.
    """

    needs: ClassVar[tuple[Literal["pretransform", "sample_rate"], ...]] = ()
    reads: ClassVar[ValueKind] = "anything"

    id: str = Field(min_length=1, description="name of the condition, and of the metadata it reads")
    type: str
    config: ConditionerParams

    @property
    def form(self) -> Form:
        """What it makes, which says by which routes it can go: a vector by all, tokens and signals by their own."""
        return "vector"

    @property
    def num_tokens(self) -> int | None:
        """N, where it is the same for all metadata; None: it is not."""
        return 1 if self.form == "vector" else None

    @abstractmethod
    def build(self, cond_dim: int, *, tokens: bool = True, pooled: bool = True) -> Conditioner: ...

    def width(self, cond_dim: int) -> int:
        """D, or C for a signal."""
        return self.config.output_dim or cond_dim

    def example(self, sample_rate: int, pretransform: BasePretransformConfig | None = None) -> Any:
        """A metadata value that this conditioner accepts, for plans, which read no data.

        Args:
            sample_rate: Hz, of the model's audio.
            pretransform: the model's.
        """
        return "a sound"


class MultiConditioner(nn.Module):
    """All conditioners of a model by id.

    Args:
        conditioners: id to conditioner.
        default_keys: id to the metadata key that is read where an item lacks the id itself.
        pre_encoded_keys: ids whose metadata are finished tensors, taken as they are.
        idle: ids that nothing uses: they keep their weights, for the checkpoint's sake, and read no metadata.
    """

    def __init__(
        self,
        conditioners: Mapping[str, Conditioner],
        *,
        default_keys: Mapping[str, str] | None = None,
        pre_encoded_keys: Sequence[str] = (),
        idle: Sequence[str] = (),
    ):
        super().__init__()
        self.conditioners = nn.ModuleDict(conditioners)
        self.default_keys, self.pre_encoded_keys = dict(default_keys or {}), tuple(pre_encoded_keys)
        self.idle = tuple(idle)
        for name in (*self.pre_encoded_keys, *self.idle):
            self.conditioners[name].requires_grad_(False)

    def forward(self, batch_metadata: Sequence[Metadata], device: torch.device | str) -> dict[str, Condition]:
        """The condition of each id in use for B items. The metadata are only read.

        Raises:
            ConfigError: an item lacks a key, or a value is of the wrong kind.
        """
        used = {name: conditioner for name, conditioner in self.conditioners.items() if name not in self.idle}
        return {name: self._condition(name, conditioner, batch_metadata, device) for name, conditioner in used.items()}

    def _condition(self, name: str, conditioner: Any, batch_metadata: Sequence[Metadata], device: torch.device | str) -> Condition:
        values = [self._value(name, index, item) for index, item in enumerate(batch_metadata)]
        try:
            if name in self.pre_encoded_keys:
                return pre_encoded(values, device)
            prepared = conditioner.prepare(values)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError([Problem((name,), str(error))], "metadata") from None
        try:
            return conditioner(prepared.to(device))
        except ConfigError as error:  # a network that is loaded at first use is not there
            raise ConfigError([replace(problem, path=(name, *problem.path)) for problem in error.problems], error.source) from None

    def _value(self, name: str, index: int, item: Metadata) -> Any:
        keys = [name, *([self.default_keys[name]] if name in self.default_keys else [])]
        for key in keys:
            if item.get(key) is not None:
                return unwrap(item[key])
        wanted = " or ".join(map(value_text, keys))
        message = f"item {index} has no {wanted}, which the conditioner {value_text(name)} reads; its keys: {', '.join(item) or 'none'}"
        raise ConfigError([Problem((), message, f"give it, or name another key in conditioning.default_keys.{name}")], "metadata")


def unwrap(value: Any) -> Any:
    """The only entry of a list, since loaders wrap values so; anything else as it is."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def pre_encoded(values: Sequence[Any], device: torch.device | str) -> Condition:
    """Finished tensors, one per item and all of one shape, as a condition: (N, D) tokens, a (D,) vector or a (C, T) signal."""
    if not all(isinstance(value, Tensor) for value in values):
        raise ValueError("pre-encoded values must be tensors")
    if len({value.shape for value in values}) > 1:
        raise ValueError(f"pre-encoded tensors differ in shape: {sorted({tuple(value.shape) for value in values})}")
    tensor = torch.stack(list(values)).to(device)
    return Condition(tensor[:, None], None, tensor) if tensor.ndim == 2 else Condition(tensor, None)


def vector_condition(vector: Tensor) -> Condition:
    """A (B, D) vector for every route: one token, and itself."""
    return Condition(vector[:, None], torch.ones(vector.shape[0], 1, dtype=torch.bool, device=vector.device), vector)
