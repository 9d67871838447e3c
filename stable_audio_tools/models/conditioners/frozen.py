"""Networks that a conditioner only reads: outside of state_dict, `parameters()` and deep copies, and for text loaded at first use.

N tokens, D width.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

CACHE_BYTES = 256 * 2**20  # chosen: some thousand prompts of 20 tokens and width 768


class Encoded(NamedTuple):
    """A text's features (N, D), and which of them are real (N,)."""

    features: Tensor
    mask: Tensor


TextEncoder = Callable[[Sequence[str]], list[Encoded]]


class FrozenNetwork:
    """A pretrained network that never trains: loaded at first use, and once for all copies of its owner.

    Args:
        load: makes it on a device. A pickle holds this function alone, so it must be importable.
    """

    def __init__(self, load: Callable[[torch.device], Any]):
        self.load = load
        self._network: Any = None
        self._device: torch.device | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.load,)

    @property
    def loaded(self) -> bool:
        return self._network is not None

    @contextmanager
    def on(self, device: torch.device) -> Iterator[Any]:
        """The network on `device`, in the surroundings that it runs in.

        Raises:
            ConfigError: it cannot be loaded.
        """
        device = torch.empty(0, device=device).device  # "cuda" is "cuda:0"
        # Out of inference mode, since what a demo makes there cannot take part in training afterwards; out of autocast, since
        # what is remembered must not depend on who asked first.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False), torch.device("cpu"):
            if self._network is None or self._device != device:
                self._network = None  # the old one goes before the new one comes
                self._network, self._device = self.load(device), device
            yield self._network


class FrozenTextEncoder(FrozenNetwork):
    """A `FrozenNetwork` from texts to their features, asked once for each text.

    Args:
        load: makes a function from texts to the `Encoded` of each.
        max_bytes: of the remembered features; those longest unused are forgotten first.

    `recall` gives the features of those texts that somebody encoded before; the network is asked for the others alone.
    """

    def __init__(self, load: Callable[[torch.device], TextEncoder], max_bytes: int = CACHE_BYTES):
        super().__init__(load)
        self.max_bytes = max_bytes
        self.recall: Callable[[Sequence[str]], dict[str, Encoded]] = lambda texts: {}
        self._known: OrderedDict[str, Encoded] = OrderedDict()
        self._bytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.load, self.max_bytes)

    def encode(self, texts: Sequence[str], device: torch.device) -> list[Encoded]:
        """The features of each text on `device`, float32, without a gradient.

        Raises:
            ConfigError: the encoder cannot be loaded.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        found = {text: self._known[text] for text in texts if text in self._known}
        found |= self.recall(new) if new else {}
        new = [text for text in new if text not in found]
        if new:
            with self.on(device) as encoder:
                found |= {text: Encoded(row.float().clone(), real.clone()) for text, (row, real) in zip(new, encoder(new), strict=True)}
        self._remember(found)
        return [Encoded(*(part.to(device) for part in found[text])) for text in texts]

    def _remember(self, found: dict[str, Encoded]) -> None:
        for text, encoded in found.items():
            if text not in self._known:
                self._bytes += _size(encoded)
            self._known[text] = encoded
            self._known.move_to_end(text)
        while self._bytes > self.max_bytes:
            self._bytes -= _size(self._known.popitem(last=False)[1])


class Unowned:
    """A module that is used without being registered: kept out of state_dict and `parameters()`, and shared by copies if frozen."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> Unowned:
        trains = any(parameter.requires_grad for parameter in self.module.parameters())
        return Unowned(copy.deepcopy(self.module, memo)) if trains else self

    def on(self, device: torch.device) -> Any:
        """The module, moved to `device` if it is elsewhere."""
        tensor = next(chain(self.module.parameters(), self.module.buffers()), None)
        return self.module if tensor is None or tensor.device == device else self.module.to(device)


def blank_encoder(tokens: int, width: int) -> FrozenTextEncoder:
    """In place of an encoder that is not to be loaded: zeros (tokens, width) for each text."""

    def encode(texts: Sequence[str]) -> list[Encoded]:
        return [Encoded(torch.zeros(tokens, width), torch.ones(tokens, dtype=torch.bool)) for _ in texts]

    return FrozenTextEncoder(lambda device: encode)


def _size(encoded: Encoded) -> int:
    return sum(part.numel() * part.element_size() for part in encoded)
