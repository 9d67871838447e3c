"""One step of a language model's generation: what it predicts, guided and with a cache, and the noise that decides.

B batch, K codebooks, S steps of the pattern, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stable_audio_tools.diffusion.seeds import generator_for
from stable_audio_tools.nn.cache import TransformerCache

from .conditioners.routing import Inputs
from .lm_backbone import CodebookTransformer
from .token_sampling import guided_logits


class TokenNoise:
    """What draws depend on: each item's own stream, made on the CPU, or the global generator."""

    def __init__(self, seed: int | Sequence[int] | None, batch: int):
        if isinstance(seed, Sequence) and len(seed) != batch:
            raise ValueError(f"{len(seed)} seeds for {batch} items; give one for each")
        streams = [(seed, item) for item in range(batch)] if isinstance(seed, int) else [(each, 0) for each in seed or ()]
        self.generators = [generator_for(*stream) for stream in streams]

    def __call__(self, like: Tensor) -> Tensor:
        """Exponential noise of the shape (B, K, V) of `like`."""
        if not self.generators:
            return torch.empty_like(like).exponential_()
        return torch.stack([torch.empty(like.shape[1:]).exponential_(generator=generator) for generator in self.generators]).to(like)


class NextStep:
    """Logits of the next step, guided, with what earlier calls computed kept where there is a cache.

    Args:
        inputs: the conditions.
        away: what to guide away from; None: no guidance.
        capacity: steps that the cache makes room for; 0: there is none.
        batch_cfg: both in one batch, where their shapes allow it.
    """

    def __init__(self, lm: CodebookTransformer, inputs: Inputs, away: Inputs | None, *, scale: float, capacity: int, batch_cfg: bool):
        self.lm, self.scale, self.seen, self.guides = lm, scale, 0, away is not None
        self.passes = [inputs] if away is None else [inputs, away]
        if away is not None and batch_cfg and _shapes(inputs) == _shapes(away):
            self.passes = [{name: _both(value, away[name]) for name, value in inputs.items()}]
        self.caches = [lm.backbone.model.make_cache(capacity) if capacity else None for _ in self.passes]

    def __call__(self, sequence: Tensor) -> Tensor:
        """All steps so far (B, K, S) to logits (B, K, V) of the next."""
        new = sequence[..., self.seen :]
        if self.caches[0] is not None:
            self.seen = sequence.shape[-1]
        if self.guides and len(self.passes) == 1:
            new = torch.cat((new, new))
        logits = torch.cat([self._last(new, *each) for each in zip(self.passes, self.caches, strict=True)])
        if not self.guides:
            return logits
        conditional, unconditional = logits.chunk(2)
        return guided_logits(conditional, unconditional, self.scale)

    def _last(self, new: Tensor, inputs: Inputs, cache: TransformerCache | None) -> Tensor:
        return self.lm.heads(self.lm.hidden(new, inputs, cache)[:, -1:])[:, :, 0].float()


def _shapes(inputs: Inputs) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in inputs.items() if value is not None}


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else torch.cat((a, b))
