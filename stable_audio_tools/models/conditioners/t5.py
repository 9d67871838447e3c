"""`t5`: prompts through the encoder of a pretrained T5 (arXiv:1910.10683), one token per word piece.

B batch, N tokens (max_length), D output width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.configs.suggest import closest

from .base import BaseConditionerConfig, Condition, ConditionerParams, Form, ValueKind
from .frozen import Encoded, FrozenTextEncoder
from .pretrained_text import (
    PretrainedTextConditioner,
    Shared,
    Texts,
    folder_config,
    import_transformers,
    load_pretrained,
    load_tokenizer,
    padded,
    project,
    projection,
    tokenize,
)

KEY = "t5_model_name"
WIDTHS = {
    "t5-small": 512,
    "t5-base": 768,
    "t5-large": 1024,
    "t5-3b": 1024,
    "t5-11b": 1024,
    "google/flan-t5-small": 512,
    "google/flan-t5-base": 768,
    "google/flan-t5-large": 1024,
    "google/flan-t5-xl": 2048,
    "google/flan-t5-xxl": 4096,
    "google/t5-v1_1-xl": 2048,
    "google/t5-v1_1-xxl": 4096,
}
"""The published models and the width of their tokens (`d_model` in their config.json)."""


class T5Params(ConditionerParams):
    t5_model_name: str = Field(default="t5-base", description="a published T5, any other name of the hub, or a local folder")
    max_length: PositiveInt = Field(default=128, description="tokens of a prompt; the rest is cut off, and shorter ones are padded")
    enable_grad: bool = Field(default=False, description="train the T5 as well: it is then loaded at once, and part of the checkpoint")
    project_out: bool = Field(default=False, description="a linear layer behind the T5 even where the widths agree")
    model_dim: PositiveInt | None = Field(
        default=None, description="width of the T5's tokens; only needed for a hub name that is not a published T5"
    )

    @model_validator(mode="after")
    def _width_is_known(self) -> Self:
        known, name = self._found_width(), value_text(self.t5_model_name)
        if known is None and self.model_dim is None:
            near = closest(self.t5_model_name, WIDTHS)
            fix = f"did you mean {value_text(near)}?" if near else "a local folder needs a config.json; for a hub name, set model_dim"
            message = f"the width of {name} is not known: it is neither a published T5 nor a local folder"
            raise ConfigError([Problem((KEY,), message, fix, self.t5_model_name)])
        if known is not None and self.model_dim not in (None, known):
            message = f"model_dim is {self.model_dim}, but {name} has width {known}"
            raise ConfigError([Problem(("model_dim",), message, "remove model_dim", self.model_dim)])
        return self

    @property
    def width(self) -> int:
        width = self._found_width() or self.model_dim
        assert width is not None
        return width

    def _found_width(self) -> int | None:
        config = folder_config(self.t5_model_name)
        return WIDTHS.get(self.t5_model_name) if config is None else config.get("d_model")


class T5Config(BaseConditionerConfig):
    """A pretrained T5 reads the prompt."""

    type: Literal["t5"]
    config: T5Params = Field(default_factory=T5Params)
    reads: ClassVar[ValueKind] = "text"

    @property
    def form(self) -> Form:
        return "tokens"

    @property
    def num_tokens(self) -> int | None:
        return self.config.max_length

    def build(self, cond_dim: int, *, tokens: bool = True, pooled: bool = True) -> T5Conditioner:
        return T5Conditioner(self.width(cond_dim), self.config)


class T5Conditioner(PretrainedTextConditioner):
    """Tokens (B, N, D) of each prompt, zeros behind its end, and their mask.

    Frozen, the T5 runs in float32 on a CPU and in float16 on an accelerator, trained in the precision of its owner.
    """

    def __init__(self, dim: int, params: T5Params):
        super().__init__(num_tokens=params.max_length, width=params.width)
        self.max_length = params.max_length
        self.proj_out = projection(params.width, dim, always=params.project_out)
        if params.enable_grad:
            self.model = load_trainable(params.t5_model_name)
            self._tokenizer = Shared(partial(load_tokenizer, params.t5_model_name, KEY))
        else:
            self._frozen = FrozenTextEncoder(partial(T5Reader.load, params.t5_model_name, params.max_length))

    def forward(self, prepared: Texts) -> Condition:
        features, mask = self._features(prepared)
        tokens = project(self.proj_out, features)
        return Condition(tokens * mask[..., None].to(tokens.dtype), mask)

    def _features(self, prepared: Texts) -> tuple[Tensor, Tensor]:
        """The T5's own tokens (B, N, width) and their mask."""
        if self.model is None:
            return padded(self._frozen.encode(prepared.texts, prepared.device), self.max_length)
        ids, mask = (part.to(prepared.device) for part in tokenize(self._tokenizer(), prepared.texts, self.max_length))
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask


@dataclass(frozen=True)
class T5Reader:
    """Texts to the tokens of a frozen T5, without padding."""

    model: nn.Module
    tokenizer: Any
    max_length: int

    @classmethod
    def load(cls, name: str, max_length: int, device: torch.device) -> T5Reader:
        transformers = import_transformers(KEY)
        # transformers keeps the layers that overflow in float16 ("wo") in float32.
        dtype = torch.float32 if device.type == "cpu" else torch.float16
        model = load_pretrained(transformers.T5EncoderModel.from_pretrained, name, KEY, dtype=dtype)
        return cls(model.requires_grad_(False).eval().to(device), load_tokenizer(name, KEY), max_length)

    def __call__(self, texts: Sequence[str]) -> list[Encoded]:
        device = next(self.model.parameters()).device
        ids, mask = (part.to(device) for part in tokenize(self.tokenizer, texts, self.max_length))
        features = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return [Encoded(row[real], real[real]) for row, real in zip(features, mask, strict=True)]


def load_trainable(name: str) -> nn.Module:
    """The T5 encoder with its pretrained weights in float32; on the meta device, its shapes alone."""
    transformers = import_transformers(KEY)
    if torch.get_default_device().type == "meta":
        return transformers.T5EncoderModel(load_pretrained(transformers.AutoConfig.from_pretrained, name, KEY)).eval()
    return load_pretrained(transformers.T5EncoderModel.from_pretrained, name, KEY, dtype=torch.float32).eval()
