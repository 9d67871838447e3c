"""From logits to tokens: guidance, temperature, top-k (arXiv:1805.04833) and top-p (arXiv:1904.09751), as pure functions.

Logits and probabilities are (..., V) over the vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Sampling(NamedTuple):
    """How tokens are drawn.

    temperature: of the softmax; 0: always the most likely token.
    top_k: draw from that many of the most likely tokens; 0: from all.
    top_p: draw from the most likely tokens that together have this probability, instead of `top_k`; 0: use `top_k`.
    """

    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 0.0

    def check(self) -> None:
        """Raises ValueError where a value means nothing."""
        if self.temperature < 0:
            raise ValueError(f"temp must be 0 (the most likely token) or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must be from 0 (off) to 1, got {self.top_p}")


def guided_logits(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of a language model: away from what is likely anyway. arXiv:2306.17806."""
    return unconditional + scale * (conditional - unconditional)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What tokens are drawn from: they need not sum to one. A temperature of 0 leaves the most likely token alone."""
    logits = logits.float()
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    probs = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p > 0:
        return keep_top_p(probs, sampling.top_p)
    return keep_top_k(probs, sampling.top_k) if sampling.top_k else probs


def keep_top_k(probs: Tensor, k: int) -> Tensor:
    """`probs` with zeros for all but the k greatest; those equal to the least of them stay. A k beyond the vocabulary keeps all."""
    least = probs.topk(min(k, probs.shape[-1]), dim=-1).values[..., -1:]
    return probs.where(probs >= least, 0)


def keep_top_p(probs: Tensor, p: float) -> Tensor:
    """`probs` with zeros for all but the fewest greatest whose sum reaches p; the greatest always stays."""
    ordered, index = probs.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    before[..., 0] = 0
    return torch.zeros_like(probs).scatter(-1, index, ordered.where(before <= p, 0))


def draw(probs: Tensor, noise: Tensor) -> Tensor:
    """One token (...) of unnormalised probabilities, by positive noise (..., V) from the exponential distribution of rate 1.

    The first of several clocks to ring has them in proportion to their rates, which needs no sum and no cumulation.
    """
    return (probs / noise).argmax(-1)
