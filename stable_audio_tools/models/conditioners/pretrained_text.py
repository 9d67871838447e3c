"""What the conditioners around pretrained text models and tokenizers share: texts as a batch, projections, and loading with clear errors.

B batch, N tokens, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from stable_audio_tools.configs.errors import ConfigError, Problem, value_text

from .base import Conditioner
from .frozen import Encoded, FrozenTextEncoder, blank_encoder

INSTALL = 'pip install -e ".[text]"'


@dataclass(frozen=True)
class Texts:
    """A batch of prompts on its way to `device`."""

    texts: tuple[str, ...]
    device: torch.device = torch.device("cpu")  # noqa: RUF009  a device never changes

    def to(self, device: torch.device | str) -> Texts:
        return replace(self, device=torch.device(device))


def parse_text(value: Any) -> str:
    """`value`, if it is text.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {value_text(value)}")
    return value


def projection(width: int, dim: int, *, always: bool) -> nn.Module:
    """A linear layer from `width` to `dim`; none where the two are equal, unless `always`."""
    return nn.Linear(width, dim) if always or width != dim else nn.Identity()


def project(layer: nn.Module, features: Tensor) -> Tensor:
    """Features (..., width) through `projection`'s layer, in the precision of its weights."""
    return layer(features.to(layer.weight.dtype)) if isinstance(layer, nn.Linear) else features


class PretrainedTextConditioner(Conditioner):
    """Prompts through a pretrained network, which runs in evaluation mode always, as in published models.

    Frozen, the network is loaded at first use and is no part of the checkpoint; trained, it is the attribute `model`.

    Args:
        num_tokens, width: shape of what the network gives for a prompt.
    """

    _frozen: FrozenTextEncoder

    def __init__(self, *, num_tokens: int, width: int):
        super().__init__()
        self.num_tokens, self.width = num_tokens, width
        self.model: nn.Module | None = None

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.model is not None:
            self.model.eval()
        return self

    @property
    def frozen(self) -> FrozenTextEncoder | None:
        """The network's half that never changes; None: it is trained."""
        return self._frozen if self.model is None else None

    def stand_in(self) -> None:
        if self.model is None:
            self._frozen = blank_encoder(self.num_tokens, self.width)

    def parse(self, value: Any) -> str:
        return parse_text(value)

    def collate(self, rows: Sequence[str]) -> Texts:
        return Texts(tuple(rows))


def padded(encoded: Sequence[Encoded], length: int) -> tuple[Tensor, Tensor]:
    """Features (B, length, D), zeros behind each text's own, and the mask (B, length)."""
    width = encoded[0].features.shape[-1]
    features = torch.stack([nn.functional.pad(row, (0, 0, 0, length - len(row))) for row, _ in encoded])
    mask = torch.stack([nn.functional.pad(real, (0, length - len(real))) for _, real in encoded])
    assert features.shape[1:] == (length, width)
    return features, mask


class Shared:
    """Something that copies of its owner share: a tokenizer, which takes long to copy and never changes."""

    def __init__(self, load: Callable[[], Any]):
        self.load, self._value = load, None

    def __call__(self) -> Any:
        if self._value is None:
            self._value = self.load()
        return self._value

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_value": None}


def load_pretrained(load: Callable[..., Any], name: str, key: str, **options: Any) -> Any:
    """`load(name)` of a transformers class.

    Raises:
        ConfigError: there is no such model, here or on the hub; the message names the config's `key`.
    """
    try:
        return load(name, **options)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        fix = "check the name and the network, or name a local folder that holds the model"
        raise ConfigError([Problem((key,), f"{value_text(name)} cannot be loaded: {first}", fix, name)], "conditioning") from None


def load_tokenizer(name: str, key: str) -> Any:
    """The tokenizer of a hub name or a folder, or the one in a `tokenizer.json`, which is then taken to have no padding token.

    Raises:
        ConfigError: there is none, or transformers is missing.
    """
    transformers = import_transformers(key)
    if Path(name).is_file():
        return load_pretrained(lambda path: transformers.PreTrainedTokenizerFast(tokenizer_file=path), name, key)
    return load_pretrained(transformers.AutoTokenizer.from_pretrained, name, key)


def import_transformers(key: str) -> Any:
    """The package `transformers`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise ConfigError([Problem((key,), "text models need the package transformers", INSTALL)], "conditioning") from None
    return transformers


def tokenize(tokenizer: Any, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Token ids (B, length) and their mask, cut and padded on the tokenizer's own side; without a padding token, with zeros."""
    rows = tokenizer(list(texts), truncation=True, max_length=length, padding=False)["input_ids"]
    pad, left = tokenizer.pad_token_id or 0, tokenizer.padding_side == "left"
    filled = [[pad] * (length - len(row)) + row if left else row + [pad] * (length - len(row)) for row in rows]
    counts, places = torch.tensor([len(row) for row in rows])[:, None], torch.arange(length)[None]
    return torch.tensor(filled), (places >= length - counts) if left else (places < counts)


def folder_config(name: str) -> dict[str, Any] | None:
    """The `config.json` of a model's folder; None: there is no such folder or file.

    Raises:
        ValueError: it is no JSON object.
    """
    path = Path(name) / "config.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content
