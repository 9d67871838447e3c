"""Numbers and choices as conditions: each gives one vector."""

from __future__ import annotations

import logging
import math
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.base import check_order
from stable_audio_tools.configs.errors import value_text
from stable_audio_tools.models.pretransforms.base import BasePretransformConfig
from stable_audio_tools.nn.embeddings import NumberEmbedding

from .base import BaseConditionerConfig, Condition, Conditioner, ConditionerParams, ValueKind, vector_condition

logger = logging.getLogger(__name__)


class IntParams(ConditionerParams):
    min_val: int = Field(default=0, description="smallest number; what is below is taken for it")
    max_val: int = Field(default=512, description="largest number; what is above is taken for it")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_val != self.max_val:  # one number alone is a useless range, and a valid one
            check_order(self, "min_val", "max_val")
        return self


class IntConfig(BaseConditionerConfig):
    """A learned vector for each whole number of a range."""

    type: Literal["int"]
    config: IntParams = Field(default_factory=IntParams)
    reads: ClassVar[ValueKind] = "a whole number"

    def build(self, cond_dim: int, *, tokens: bool = True, pooled: bool = True) -> IntConditioner:
        return IntConditioner(self.width(cond_dim), self.config)

    def example(self, sample_rate: int, pretransform: BasePretransformConfig | None = None) -> Any:
        return self.config.min_val


class IntConditioner(Conditioner):
    """Whole numbers, also written as floats; out of range, they are taken for the nearest end."""

    def __init__(self, dim: int, params: IntParams):
        super().__init__()
        self.min_val, self.max_val = params.min_val, params.max_val
        self.int_embedder = nn.Embedding(self.max_val - self.min_val + 1, dim)

    def parse(self, value: Any) -> Tensor:
        number = as_number(value)
        if number != int(number):
            raise ValueError(f"expected a whole number, got {number}")
        return torch.tensor(min(max(int(number), self.min_val), self.max_val) - self.min_val)

    def forward(self, prepared: Tensor) -> Condition:
        return vector_condition(self.int_embedder(prepared))


class NumberParams(ConditionerParams):
    min_val: float = Field(default=0.0, description="smallest number; what is below is taken for it")
    max_val: float = Field(default=1.0, description="largest number; what is above is taken for it")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        check_order(self, "min_val", "max_val")
        return self


class NumberConfig(BaseConditionerConfig):
    """A number by Fourier features of its place in a range."""

    type: Literal["number"]
    config: NumberParams = Field(default_factory=NumberParams)
    reads: ClassVar[ValueKind] = "a number"

    def build(self, cond_dim: int, *, tokens: bool = True, pooled: bool = True) -> NumberConditioner:
        return NumberConditioner(self.width(cond_dim), self.config)

    def example(self, sample_rate: int, pretransform: BasePretransformConfig | None = None) -> Any:
        return self.config.min_val


class NumberConditioner(Conditioner):
    """Numbers; out of range, they are taken for the nearest end."""

    def __init__(self, dim: int, params: NumberParams):
        super().__init__()
        self.min_val, self.max_val = params.min_val, params.max_val
        self.embedder = NumberEmbedding(dim)

    def parse(self, value: Any) -> Tensor:
        number = min(max(as_number(value), self.min_val), self.max_val)
        return torch.tensor((number - self.min_val) / (self.max_val - self.min_val))

    def forward(self, prepared: Tensor) -> Condition:
        return vector_condition(self.embedder(prepared))


class ListParams(ConditionerParams):
    options: tuple[str | int, ...] = Field(min_length=1, description="the known values; any other is one shared 'unknown'")


class ListConfig(BaseConditionerConfig):
    """A learned vector for each of some values."""

    type: Literal["list"]
    config: ListParams

    def build(self, cond_dim: int, *, tokens: bool = True, pooled: bool = True) -> ListConditioner:
        return ListConditioner(self.width(cond_dim), self.config)

    def example(self, sample_rate: int, pretransform: BasePretransformConfig | None = None) -> Any:
        return self.config.options[0]


class ListConditioner(Conditioner):
    """One of the options; row 0 of the table is any other value, which is reported once."""

    def __init__(self, dim: int, params: ListParams):
        super().__init__()
        self.index: dict[str | int, int] = {}
        for row, option in enumerate(params.options, start=1):
            if self.index.setdefault(option, row) != row:
                logger.warning("the option %s is listed twice: its second row stays unused", value_text(option))
        self.embedder = nn.Embedding(len(params.options) + 1, dim)
        self.reported = False

    def parse(self, value: Any) -> Tensor:
        row = self.index.get(value, 0) if isinstance(value, (str, int)) and not isinstance(value, bool) else 0
        if row == 0 and not self.reported:
            logger.warning("%s is none of the options %s and is taken as unknown", value_text(value), ", ".join(map(str, self.index)))
            self.reported = True
        return torch.tensor(row)

    def forward(self, prepared: Tensor) -> Condition:
        return vector_condition(self.embedder(prepared))


def as_number(value: Any) -> float:
    """A finite number from a Python, numpy or one-element torch number.

    Raises:
        ValueError: it is no number, or not a finite one.
    """
    if isinstance(value, (str, bytes, bool)) or not hasattr(value, "__float__"):
        raise ValueError(f"expected a number, got {value_text(value)}")
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"expected one number, got a tensor of shape {tuple(value.shape)}")
    try:
        number = float(value)
    except TypeError as error:
        raise ValueError(f"expected one number: {error}") from None
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {number}")
    return number
