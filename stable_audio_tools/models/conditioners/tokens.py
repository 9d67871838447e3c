"""Tables of learned vectors for the parts of a text: `lut` for a tokenizer's word pieces, `phoneme` for the sounds of English.

B batch, N tokens, D output width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.nn.embeddings import AbsolutePositions

from .base import BaseConditionerConfig, Condition, Conditioner, ConditionerParams, Form, ValueKind
from .pretrained_text import Shared, load_tokenizer, parse_text, project, projection, tokenize

logger = logging.getLogger(__name__)

TOKENIZER_KEY = "tokenizer_name"
VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")  # each in three stresses
CONSONANTS = (
    "B",
    "CH",
    "D",
    "DH",
    "F",
    "G",
    "HH",
    "JH",
    "K",
    "L",
    "M",
    "N",
    "NG",
    "P",
    "R",
    "S",
    "SH",
    "T",
    "TH",
    "V",
    "W",
    "Y",
    "Z",
    "ZH",
)
PHONEMES = ("<pad>", "<unk>", "<s>", "</s>", *sorted([*(f"{v}{stress}" for v in VOWELS for stress in range(3)), "UW", *CONSONANTS]))
"""The symbols of g2p_en, in its order: four marks, then those of the CMU Pronouncing Dictionary, and one without its stress."""
PADDING, OTHER = 0, 1  # rows of the table in front of the phonemes: nothing here, and whatever is no phoneme, such as a space


class LUTParams(ConditionerParams):
    tokenizer_name: str = Field(min_length=1, description="a tokenizer of the hub, a folder that holds one, or a tokenizer.json")
    max_length: PositiveInt = Field(default=1024, description="tokens of a text; the rest is cut off, and shorter ones are padded")
    use_abs_pos_emb: bool = Field(default=False, description="add a learned vector for each position")
    project_out: bool = Field(default=False, description="a linear layer behind the table")
    special_tokens: tuple[str, ...] = Field(default=(), description="texts that become tokens of their own")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for index, token in enumerate(self.special_tokens):
            if not token or token in self.special_tokens[:index]:
                message = f"{value_text(token)} is {'listed twice' if token else 'no token'}"
                raise ConfigError([Problem(("special_tokens", index), message, "remove it", token)])
        return self


class LUTConfig(BaseConditionerConfig):
    """A learned vector for each token of a pretrained tokenizer."""

    type: Literal["lut"]
    config: LUTParams
    reads: ClassVar[ValueKind] = "text"

    @property
    def form(self) -> Form:
        return "tokens"

    @property
    def num_tokens(self) -> int | None:
        return self.config.max_length

    def build(self, cond_dim: int, *, tokens: bool = True, pooled: bool = True) -> LUTConditioner:
        return LUTConditioner(self.width(cond_dim), self.config)


class LUTConditioner(Conditioner):
    """Tokens (B, max_length, D) and their mask; behind a text's end stand zeros, or the position's vector alone."""

    def __init__(self, dim: int, params: LUTParams):
        super().__init__()
        self.max_length = params.max_length
        self._tokenizer = Shared(partial(_tokenizer, params.tokenizer_name, params.special_tokens))
        self.token_embedder = nn.Embedding(len(self._tokenizer()), dim)
        self.proj_out = projection(dim, dim, always=params.project_out)
        self.abs_pos_emb = AbsolutePositions(dim, params.max_length) if params.use_abs_pos_emb else None

    def parse(self, value: Any) -> Tensor:
        """(2, max_length) token ids and, as 1, which of them are real."""
        ids, mask = tokenize(self._tokenizer(), [parse_text(value)], self.max_length)
        return torch.cat((ids, mask.to(ids.dtype)))

    def forward(self, prepared: Tensor) -> Condition:
        ids, mask = prepared[:, 0], prepared[:, 1].bool()
        tokens = project(self.proj_out, self.token_embedder(ids))
        tokens = tokens * mask[..., None].to(tokens.dtype)
        if self.abs_pos_emb is not None:
            tokens = tokens + self.abs_pos_emb(self.max_length)
        return Condition(tokens, mask)


class PhonemeParams(ConditionerParams):
    max_length: PositiveInt = Field(default=1024, description="phonemes of a text that are read; the rest is cut off with a warning")
    project_out: bool = Field(default=False, description="a linear layer behind the table")


class PhonemeConfig(BaseConditionerConfig):
    """A learned vector for each phoneme of an English text."""

    type: Literal["phoneme"]
    config: PhonemeParams = Field(default_factory=PhonemeParams)

    @property
    def form(self) -> Form:
        return "tokens"

    def build(self, cond_dim: int, *, tokens: bool = True, pooled: bool = True) -> PhonemeConditioner:
        return PhonemeConditioner(self.width(cond_dim), self.config)


class PhonemeConditioner(Conditioner):
    """Tokens (B, N, D) of a text's phonemes, N those of the longest, and their mask.

    A text is spelt by g2p_en, which is imported at the first one; a list of CMU phonemes ("HH", "AH0", ...) is taken as it is.
    Spaces and punctuation share one vector.
    """

    def __init__(self, dim: int, params: PhonemeParams):
        super().__init__()
        self.max_length, self.reported = params.max_length, False
        self.rows = {phoneme: row for row, phoneme in enumerate(PHONEMES, start=2)}
        self.phoneme_embedder = nn.Embedding(len(PHONEMES) + 2, dim)
        self.proj_out = projection(dim, dim, always=params.project_out)
        self._spell = Shared(_g2p)

    def parse(self, value: Any) -> Tensor:
        """(N,) rows of the table, at least one."""
        listed = isinstance(value, (list, tuple)) and all(isinstance(phoneme, str) for phoneme in value)
        if not (listed or isinstance(value, str)):
            raise ValueError(f"expected text or a list of phonemes, got {value_text(value)}")
        phonemes = value if listed else self._spell()(value)
        if len(phonemes) > self.max_length and not self.reported:
            logger.warning("%s has %d phonemes; the first %d are read (max_length)", value_text(value), len(phonemes), self.max_length)
            self.reported = True
        rows = [self.rows.get(phoneme, OTHER) for phoneme in phonemes[: self.max_length]]
        return torch.tensor(rows or [PADDING])

    def collate(self, rows: Sequence[Tensor]) -> Tensor:
        return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=PADDING)

    def forward(self, prepared: Tensor) -> Condition:
        return Condition(project(self.proj_out, self.phoneme_embedder(prepared)), prepared != PADDING)


def _tokenizer(name: str, special_tokens: Sequence[str]) -> Any:
    tokenizer = load_tokenizer(name, TOKENIZER_KEY)
    if special_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special_tokens)})
    return tokenizer


def _g2p() -> Any:
    """Text to phonemes, by the package g2p_en.

    Raises:
        ValueError: it, or the dictionary that it reads, is not installed.
    """
    lists = "lists of phonemes are understood without it"
    try:
        from g2p_en import G2p
    except ImportError:
        raise ValueError(f"text is spelt in phonemes by the package g2p_en: pip install g2p_en; {lists}") from None
    try:
        return G2p()
    except LookupError:
        data = "python -c \"import nltk; nltk.download(['cmudict', 'averaged_perceptron_tagger', 'averaged_perceptron_tagger_eng'])\""
        raise ValueError(f"g2p_en lacks its dictionary: {data}; {lists}") from None
