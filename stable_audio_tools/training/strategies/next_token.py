"""Training of a language model: the cross-entropy of each token, given those that its pattern puts before it. arXiv:2306.05284.

B batch, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor

from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.lm import AudioLanguageModel, CodebookLoss, codebook_cross_entropy
from stable_audio_tools.training.losses.terms import mean_over_ranks
from stable_audio_tools.training.strategies.base import LossOutput, TrainingStrategy


@dataclass(frozen=True)
class TokenBatch:
    """One training batch of tokens.

    tokens: (B, K, T) int64.
    mask: (B, T) bool, True where a frame holds real audio rather than padding.
    conditions: what the conditioner produced, keyed by condition id.
    metadata: the B metadata dicts of the batch, not to be changed.
    """

    tokens: Tensor
    mask: Tensor
    conditions: Mapping[str, Condition]
    metadata: tuple[Mapping[str, Any], ...]


class NextToken(TrainingStrategy):
    """Cross-entropy, averaged over each codebook's tokens, on all processes together, and then over the codebooks.

    The player `lm` is the network and the conditioners that learn; the pretransform stays as it is.

    Args:
        cfg_dropout_prob: probability that an item is trained without its conditions.
    """

    def __init__(self, cfg_dropout_prob: float):
        super().__init__()
        self.cfg_dropout_prob = cfg_dropout_prob

    def players(self, model: Any) -> dict[str, list[Any]]:
        return {"lm": [p for p in chain(model.lm.parameters(), model.conditioner.parameters()) if p.requires_grad]}

    def loss(self, model: AudioLanguageModel, batch: TokenBatch) -> LossOutput:
        logits, predicted = model.compute_logits(batch.tokens, batch.conditions, self.cfg_dropout_prob)
        mask = predicted & batch.mask[:, None]
        found = codebook_cross_entropy(logits, batch.tokens, mask, mean_over_ranks(mask.sum(dim=(0, 2))))
        return LossOutput(found.loss, cross_entropies(found))


def stored_tokens(signal: Tensor, model: AudioLanguageModel) -> Tensor:
    """Tokens of a data set of tokens, (B, K, T) of any whole numbers, as int64.

    Raises:
        ValueError: they are not this model's tokens.
    """
    wanted = f"(batch, {model.num_quantizers} codebooks, frames) of whole numbers from 0 to {model.codebook_size - 1}"
    if signal.ndim != 3 or signal.shape[1] != model.num_quantizers or signal.is_floating_point() or signal.is_complex():
        raise ValueError(f"pre_encoded data have shape {tuple(signal.shape)} of {signal.dtype}, expected tokens {wanted}")
    if signal.numel() and (signal.min() < 0 or signal.max() >= model.codebook_size):
        raise ValueError(f"pre_encoded data have tokens from {int(signal.min())} to {int(signal.max())}, expected {wanted}")
    return signal.long()


def token_loss(model: AudioLanguageModel, batch: TokenBatch) -> CodebookLoss:
    """The loss of a batch, with all conditions, over the tokens that the pattern predicts and that are not padding."""
    logits, predicted = model.compute_logits(batch.tokens, batch.conditions)
    return codebook_cross_entropy(logits, batch.tokens, predicted & batch.mask[:, None])


def cross_entropies(found: CodebookLoss) -> dict[str, Tensor]:
    """Detached scalars in nats: `loss` and `cross_entropy`, which are one, and `cross_entropy_q1` and so on of each codebook."""
    total = found.loss.detach()
    by_codebook = {f"cross_entropy_q{number}": value for number, value in enumerate(found.cross_entropy.unbind(), 1)}
    return {"loss": total, "cross_entropy": total, **by_codebook}
