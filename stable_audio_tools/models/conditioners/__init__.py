"""Conditioners: the list a newcomer adds one line to, and the `conditioning` section of a model config."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Any, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.base import Family, StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.configs.suggest import did_you_mean
from stable_audio_tools.models.pretransforms import Pretransform
from stable_audio_tools.models.pretransforms.base import BasePretransformConfig

from .audio import PretransformConditionerConfig, SourceMixConfig
from .base import BaseConditionerConfig, Condition, Conditioner, Form, MultiConditioner, ValueKind
from .clap_audio import CLAPAudioConfig
from .clap_text import CLAPTextConfig
from .numeric import IntConfig, ListConfig, NumberConfig
from .t5 import T5Config
from .text import BytesConfig
from .tokens import LUTConfig, PhonemeConfig

CONDITIONERS = Family(
    "conditioner",
    IntConfig,
    NumberConfig,
    ListConfig,
    BytesConfig,
    T5Config,
    CLAPTextConfig,
    CLAPAudioConfig,
    LUTConfig,
    PhonemeConfig,
    PretransformConditionerConfig,
    SourceMixConfig,
)

ConditionerConfig = Annotated[BaseConditionerConfig, CONDITIONERS]

INPAINT_IDS = ("inpaint_mask", "inpaint_masked_input")
"""Conditions that training and generation add themselves, from the audio."""

TOKEN_KEYS = ("cross_attention_cond_ids", "prepend_cond_ids")
"""The routes that take tokens, by the keys that name their conditions."""


class ConditioningConfig(StrictModel):
    """Which metadata condition a model, and as what."""

    cond_dim: PositiveInt = Field(description="width of every condition whose config has no output_dim")
    configs: tuple[ConditionerConfig, ...]
    default_keys: dict[str, str] = Field(
        default={}, description="condition id: metadata key that is read where an item lacks the id itself"
    )
    pre_encoded_keys: tuple[str, ...] = Field(default=(), description="ids whose metadata are finished tensors")

    @model_validator(mode="after")
    def _ids_are_sound(self) -> Self:
        if problems := [*self._id_problems(), *self._reference_problems()]:
            raise ConfigError(problems)
        return self

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(config.id for config in self.configs)

    def width(self, name: str) -> int:
        """Width of the condition of that id."""
        return next(config for config in self.configs if config.id == name).width(self.cond_dim)

    def reads(self, name: str) -> ValueKind:
        """What metadata the condition of that id is made of."""
        return "anything" if name in self.pre_encoded_keys else next(config for config in self.configs if config.id == name).reads

    def num_tokens(self, name: str) -> int | None:
        """How many tokens the condition of that id has; None: that depends on the metadata."""
        return None if name in self.pre_encoded_keys else next(config for config in self.configs if config.id == name).num_tokens

    def form(self, name: str) -> Form | None:
        """What the conditioner of that id makes; None: whatever the finished tensors in the metadata are."""
        return None if name in self.pre_encoded_keys else next(config for config in self.configs if config.id == name).form

    def misrouted(self, name: str, key: str) -> Problem | None:
        """Why the condition of that id cannot go by the route of that key, such as "global_cond_ids"; None: it can."""
        form = self.form(name)
        if form == "tokens" and key not in TOKEN_KEYS:
            what, fix = "is made of tokens, not of one vector", f"move it to {' or '.join(TOKEN_KEYS)}"
        elif form == "signal" and key != "input_concat_ids":
            what, fix = "is a signal over time", "move it to input_concat_ids, where the model has that"
        else:
            return None
        return Problem((key,), f"{value_text(name)} {what}", fix, name)

    def build(
        self,
        tokens: Collection[str] | None = None,
        pooled: Collection[str] | None = None,
        *,
        pretransform: Pretransform | None = None,
        sample_rate: int | None = None,
    ) -> MultiConditioner:
        """All conditioners.

        Args:
            tokens: ids that are used as tokens; default: all.
            pooled: ids that are used as one vector; default: all.
            pretransform: the model's, which conditioners may share.
            sample_rate: Hz, of the model's audio.
        """
        tokens, pooled = (self.ids if used is None else used for used in (tokens, pooled))
        model: dict[str, Any] = {"pretransform": pretransform, "sample_rate": sample_rate}
        built = {}
        for c in self.configs:
            needed = {name: model[name] for name in c.needs}
            built[c.id] = c.build(self.cond_dim, tokens=c.id in tokens or c.id not in pooled, pooled=c.id in pooled, **needed)
        idle = [name for name in self.ids if name not in {*tokens, *pooled}]
        return MultiConditioner(built, default_keys=self.default_keys, pre_encoded_keys=self.pre_encoded_keys, idle=idle)

    def example(self, sample_rate: int, pretransform: BasePretransformConfig | None = None) -> dict[str, Any]:
        """Metadata that every conditioner accepts, for plans, which read no data.

        Args:
            sample_rate: Hz, of the model's audio.
            pretransform: the model's.
        """
        return {c.id: self._finished(c) if c.id in self.pre_encoded_keys else c.example(sample_rate, pretransform) for c in self.configs}

    def _finished(self, config: BaseConditionerConfig) -> Tensor:
        """A finished tensor in place of what this conditioner would make."""
        width = config.width(self.cond_dim)
        shapes: dict[Form, tuple[int, ...]] = {"vector": (width,), "tokens": (config.num_tokens or 1, width), "signal": (width, 1)}
        return torch.zeros(shapes[config.form])

    def _id_problems(self) -> Iterator[Problem]:
        for index, name in enumerate(self.ids):
            path, shown = ("configs", index, "id"), value_text(name)
            if name in self.ids[:index]:
                yield Problem(path, f"the id {shown} is taken by an earlier conditioner", "give each its own id", name)
            if name in INPAINT_IDS:
                yield Problem(path, f"{shown} is made from the audio, not by a conditioner", "remove this conditioner", name)
            if "." in name or hasattr(nn.ModuleDict, name):
                yield Problem(path, f"{shown} cannot name a part of the model", "choose another id, without dots", name)

    def _reference_problems(self) -> Iterator[Problem]:
        named = [(("default_keys", name), name) for name in self.default_keys]
        named += [(("pre_encoded_keys", index), name) for index, name in enumerate(self.pre_encoded_keys)]  # type: ignore[misc]
        for path, name in named:
            if name not in self.ids:
                yield Problem(path, f"there is no conditioner {value_text(name)}", did_you_mean(name, self.ids), name)


__all__ = ["CONDITIONERS", "INPAINT_IDS", "Condition", "Conditioner", "ConditionerConfig", "ConditioningConfig", "MultiConditioner"]
