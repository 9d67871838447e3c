"""Text as a condition. `bytes`: learned from scratch together with the model, over the bytes of the prompt.

B batch, L bytes, E embedding width, D output width.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.nn.transformer import ContinuousTransformer

from .base import BaseConditionerConfig, Condition, Conditioner, ConditionerParams, ValueKind, vector_condition

logger = logging.getLogger(__name__)

FIBONACCI = 2654435769  # 2^32 / golden ratio, Knuth, The Art of Computer Programming, section 6.4
SYMBOLS = 257  # 0 is "nothing here", byte b is b + 1


class BytesParams(ConditionerParams):
    """The defaults are those of a trial that learned pitch, instrument and loudness words in minutes."""

    max_length: PositiveInt = Field(default=64, description="bytes of a prompt that are read (UTF-8); the rest is cut off with a warning")
    encoder: Literal["ngram", "transformer"] = Field(
        default="ngram", description="what follows the n-gram embeddings: nothing, or a small transformer"
    )
    embed_dim: PositiveInt = Field(default=96, description="width of the embeddings, and of the transformer")
    hidden_dim: PositiveInt = Field(default=192, description="inner width of the network behind the pooled vector")
    bigram_buckets: PositiveInt = Field(default=1024, description="rows of the hashed table of two bytes")
    trigram_buckets: PositiveInt = Field(default=2048, description="rows of the hashed table of three bytes")
    depth: PositiveInt = Field(default=2, description="layers of the transformer")
    num_heads: PositiveInt = Field(default=4, description="heads of the transformer")

    @model_validator(mode="after")
    def _settings_act(self) -> Self:
        idle = sorted({"depth", "num_heads"} & self.model_fields_set)
        if idle and self.encoder == "ngram":
            fix = 'set "encoder": "transformer", or remove it'
            raise ConfigError([Problem((key,), f"{key} belongs to the transformer", fix, on_key=True) for key in idle])
        if self.encoder == "transformer" and self.embed_dim % self.num_heads:
            message = f"embed_dim {self.embed_dim} is no multiple of num_heads {self.num_heads}"
            raise ConfigError([Problem(("embed_dim",), message, "change embed_dim or num_heads", self.embed_dim)])
        return self


class BytesConfig(BaseConditionerConfig):
    """A learned text encoder that needs no download."""

    type: Literal["bytes"]
    config: BytesParams = Field(default_factory=BytesParams)
    reads: ClassVar[ValueKind] = "text"

    @property
    def num_tokens(self) -> int | None:
        return self.config.max_length

    def build(self, cond_dim: int, *, tokens: bool = True, pooled: bool = True) -> BytesConditioner:
        return BytesConditioner(self.width(cond_dim), self.config, tokens=tokens, pooled=pooled)


class BytesConditioner(Conditioner):
    """A vector per byte, and one for the whole prompt, from embeddings of each byte and the two and three bytes ending there.

    The empty prompt is a learned embedding of its own, and so is the null of guidance: the two are one and the same.
    Whitespace around a prompt does not count. Tokens are padded to `max_length` with zeros.

    Args:
        dim: D.
        tokens: make a (B, L, D) token for each byte; else the only token is the pooled vector.
        pooled: make the (B, D) vector.
    """

    def __init__(self, dim: int, params: BytesParams, *, tokens: bool = True, pooled: bool = True):
        super().__init__()
        if not (tokens or pooled):
            raise ValueError("nothing to make: neither tokens nor a pooled vector is asked for")
        width = params.embed_dim
        self.max_length, self.reported = params.max_length, False
        self.byte_embedding = nn.Embedding(SYMBOLS, width)
        self.bigram_embedding = nn.Embedding(params.bigram_buckets, width)
        self.trigram_embedding = nn.Embedding(params.trigram_buckets, width)
        self.null = nn.Parameter(torch.randn(width))
        self.encoder = self._transformer(params) if params.encoder == "transformer" else None
        self.to_tokens = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim)) if tokens else None
        self.to_pooled: nn.Module | None = None
        if pooled:
            layers = (nn.Linear(width, params.hidden_dim), nn.SiLU(), nn.Linear(params.hidden_dim, dim))
            self.to_pooled = nn.Sequential(nn.LayerNorm(width), *layers)

    @staticmethod
    def _transformer(params: BytesParams) -> ContinuousTransformer:
        width, heads = params.embed_dim, params.num_heads
        return ContinuousTransformer(
            width,
            params.depth,
            dim_heads=width // heads,
            rotary_pos_emb=False,
            use_abs_pos_emb=True,
            abs_pos_emb_max_length=params.max_length,
        )

    def parse(self, value: Any) -> Tensor:
        """(max_length,) symbols: each byte plus one, then zeros."""
        if not isinstance(value, str):
            raise ValueError(f"expected text, got {value_text(value)}")
        data = value.strip().encode("utf-8", errors="replace")
        if len(data) > self.max_length and not self.reported:
            logger.warning(
                "prompt %s has %d bytes; the conditioner reads the first %d (max_length)", value_text(value), len(data), self.max_length
            )
            self.reported = True
        symbols = torch.zeros(self.max_length, dtype=torch.long)
        read = data[: self.max_length]
        symbols[: len(read)] = torch.tensor(list(read), dtype=torch.long) + 1
        return symbols

    def forward(self, prepared: Tensor) -> Condition:
        """The condition of symbols (B, max_length)."""
        if self.to_pooled is None:
            hidden, mask = self._encode(prepared)
            return Condition(self._tokens(hidden, mask), mask)
        hidden, mask = self._encode(torch.cat((prepared, prepared.new_zeros(1, self.max_length))))
        # Over sqrt(length) rather than length: a sum of independent embeddings then has the scale of one.
        summed = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).sqrt().to(hidden.dtype)
        pooled, null = self.to_pooled(summed).split((prepared.shape[0], 1))
        if self.to_tokens is None:
            return vector_condition(pooled)._replace(null=null)
        return Condition(self._tokens(hidden[:-1], mask[:-1]), mask[:-1], pooled, null)

    def _encode(self, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden vectors (B, L, E) and their mask (B, L); a prompt of no bytes is one null vector."""
        mask = symbols != 0
        empty = ~mask[:, :1]
        hidden = (
            self.byte_embedding(symbols) + self.bigram_embedding(self._hash(symbols, 2)) + self.trigram_embedding(self._hash(symbols, 3))
        )
        first = torch.where(empty, self.null, hidden[:, 0])
        hidden = torch.cat((first[:, None], hidden[:, 1:]), dim=1)
        mask = torch.cat((mask[:, :1] | empty, mask[:, 1:]), dim=1)
        return (hidden if self.encoder is None else self.encoder(hidden, mask=mask)), mask

    def _hash(self, symbols: Tensor, length: int) -> Tensor:
        """(B, L) table rows of the `length` symbols that end at each position; zeros stand before the first."""
        buckets = (self.bigram_embedding if length == 2 else self.trigram_embedding).num_embeddings
        key = symbols
        for back in range(1, length):
            key = key + nn.functional.pad(symbols, (back, 0))[:, : symbols.shape[1]] * SYMBOLS**back
        # The upper bits of the product are well mixed: scale them to the table's size.
        return ((key * FIBONACCI) % 2**32) * buckets >> 32

    def _tokens(self, hidden: Tensor, mask: Tensor) -> Tensor:
        assert self.to_tokens is not None
        return self.to_tokens(hidden) * mask[..., None]
