"""From conditions to a denoiser's inputs: which condition goes where, and what is left of them for guidance.

A condition reaches a denoiser by four routes: as tokens for cross-attention, as tokens in front of the sequence ("prepend"),
as one vector for all of it ("global"), and as channels beside the noisy latents ("input concatenation").

B batch, N tokens, D width, C channels, T frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.diffusion.guidance import where_items

from .base import Condition

Conditions = Mapping[str, Condition | Sequence[Tensor]]
Inputs = dict[str, Tensor | None]
"""The keyword arguments of a denoiser: `cross_attn_cond` (B, N, D), `cross_attn_mask` (B, N), `cross_attn_dropped` (B,), the items
that have lost these tokens, `global_cond` (B, D), `input_concat_cond` (B, C, T), `prepend_cond` (B, N, D), `prepend_cond_mask`
(B, N); None where the model has no such route."""


class Routes(NamedTuple):
    """The ids that take each route, in order."""

    cross_attention: tuple[str, ...] = ()
    global_: tuple[str, ...] = ()
    input_concat: tuple[str, ...] = ()
    prepend: tuple[str, ...] = ()

    @property
    def tokens(self) -> set[str]:
        """Ids that are used as tokens."""
        return {*self.cross_attention, *self.prepend}

    @property
    def vectors(self) -> set[str]:
        """Ids that may be used as one vector."""
        return {*self.global_, *self.input_concat}

    def inputs(self, conditions: Conditions) -> Inputs:
        """The denoiser's inputs.

        Raises:
            ValueError: a condition is missing, or its shape does not fit its route.
        """
        cross_attn, cross_attn_mask = _tokens(_pick(conditions, self.cross_attention, "cross_attention_cond_ids"))
        prepend, prepend_mask = _tokens(_pick(conditions, self.prepend, "prepend_cond_ids"))
        return {
            "cross_attn_cond": cross_attn,
            "cross_attn_mask": cross_attn_mask,
            "cross_attn_dropped": None if cross_attn is None else _flags(cross_attn, False),
            "prepend_cond": prepend,
            "prepend_cond_mask": prepend_mask,
            **self._vectors(conditions),
        }

    def unconditional(self, conditions: Conditions, inputs: Inputs, negative: Conditions | None = None) -> Inputs:
        """The inputs that guidance moves away from.

        With `negative`, they are the negative's on every route. Without it, tokens for cross-attention and prepended ones become
        zeros, as in published models; on the other two routes, the conditions with a learned null give way to it, and those
        without, such as durations, stay.

        Args:
            conditions: what `inputs` were made of.
            negative: conditions of a negative prompt, all of them.
        """
        if negative is not None:
            return self.inputs(negative)
        dropped = dict(inputs)
        for name in ("cross_attn_cond", "prepend_cond"):
            if (tokens := inputs[name]) is not None:
                dropped[name] = torch.zeros_like(tokens)
        if (tokens := inputs["cross_attn_cond"]) is not None:
            dropped["cross_attn_dropped"] = _flags(tokens, True)
        if nulls := self._nulls(conditions):
            dropped.update(self._vectors({**conditions, **nulls}))
        return dropped

    def can_drop(self, conditions: Conditions) -> bool:
        """Whether guidance without a negative has anything to move away from."""
        return bool(self.tokens or self._nulls(conditions))

    def _nulls(self, conditions: Conditions) -> dict[str, Condition]:
        """The conditions with a learned null, by that null."""
        found = {}
        for name in sorted(self.vectors):
            condition = as_condition(conditions[name])
            if condition.null is not None and condition.pooled is not None:
                found[name] = condition._replace(pooled=condition.null.expand_as(condition.pooled))
        return found

    def _vectors(self, conditions: Conditions) -> Inputs:
        vectors = [_vector(name, c) for name, c in _pick(conditions, self.global_, "global_cond_ids")]
        signals = [_signal(name, c) for name, c in _pick(conditions, self.input_concat, "input_concat_ids")]
        return {
            "global_cond": torch.cat(vectors, dim=-1) if vectors else None,
            "input_concat_cond": torch.cat(_same_length(signals), dim=1) if signals else None,
        }


def drop_inputs(inputs: Inputs, unconditional: Inputs, probability: float) -> Inputs:
    """Training's side of guidance: each item loses its conditions with this probability.

    One draw an item decides on everything but prepended tokens, so that an item without its prompt is without it on every
    route; prepended tokens have a draw of their own, as in published models. Masks stay.
    """
    some = next(value for value in inputs.values() if value is not None)
    lost, prepend_lost = (torch.rand(2, some.shape[0], device=some.device) < probability).unbind(0)
    dropped = dict(inputs)
    for name in ("cross_attn_cond", "cross_attn_dropped", "global_cond", "input_concat_cond", "prepend_cond"):
        kept, null = inputs[name], unconditional[name]
        if kept is not None and null is not None and kept is not null:
            dropped[name] = where_items(prepend_lost if name == "prepend_cond" else lost, null, kept)
    return dropped


def as_condition(value: Condition | Sequence[Tensor]) -> Condition:
    """A `Condition`, also from `[tensor]` or `(tensor, mask)`."""
    if isinstance(value, Condition):
        return value
    return Condition(value[0], value[1] if len(value) > 1 else None)


def _pick(conditions: Conditions, names: Iterable[str], key: str) -> list[tuple[str, Condition]]:
    picked = []
    for name in names:
        if name not in conditions:
            raise ValueError(f"there is no condition {name!r}, which the model takes by {key}; given: {', '.join(conditions) or 'none'}")
        picked.append((name, as_condition(conditions[name])))
    return picked


def _tokens(conditions: list[tuple[str, Condition]]) -> tuple[Tensor | None, Tensor | None]:
    """All tokens in a row, and their mask."""
    if not conditions:
        return None, None
    tensors, masks = [], []
    for name, (tensor, mask, *_) in conditions:
        if tensor.ndim != 3:
            raise ValueError(f"condition {name!r} has shape {tuple(tensor.shape)}; tokens are (batch, tokens, width)")
        tensors.append(tensor)
        masks.append(tensor.new_ones(tensor.shape[:2], dtype=torch.bool) if mask is None else mask.bool())
    return torch.cat(tensors, dim=1), torch.cat(masks, dim=1)


def _flags(tokens: Tensor, value: bool) -> Tensor:
    """(B,) bool."""
    return torch.full(tokens.shape[:1], value, dtype=torch.bool, device=tokens.device)


def _vector(name: str, condition: Condition) -> Tensor:
    """(B, D) for the global route."""
    if condition.pooled is not None:
        return condition.pooled
    tensor = condition.tensor
    if tensor.ndim == 3 and tensor.shape[1] == 1:
        return tensor[:, 0]
    if tensor.ndim != 2:
        raise ValueError(f"condition {name!r} has shape {tuple(tensor.shape)}; the global route takes one vector an item")
    return tensor


def _signal(name: str, condition: Condition) -> Tensor:
    """(B, C, T), or (B, C, 1) for a vector that holds at all times."""
    if condition.pooled is not None:
        return condition.pooled[:, :, None]
    if condition.tensor.ndim != 3:
        raise ValueError(
            f"condition {name!r} has shape {tuple(condition.tensor.shape)}; input concatenation takes (batch, channels, frames)"
        )
    return condition.tensor


def _same_length(signals: list[Tensor]) -> list[Tensor]:
    """All at the length of the longest: constants are repeated, others are taken at the nearest frame."""
    length = max(signal.shape[-1] for signal in signals)
    return [resize_signal(signal, length) for signal in signals]


def resize_signal(signal: Tensor, length: int) -> Tensor:
    """(B, C, T) to (B, C, length) by the nearest frame; a constant is repeated."""
    if signal.shape[-1] == length:
        return signal
    if signal.shape[-1] == 1:
        return signal.expand(-1, -1, length)
    return F.interpolate(signal, length, mode="nearest")
