"""An adapter into the weights of a model, for good."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stable_audio_tools.adapters.files import Adapter
from stable_audio_tools.models.checkpoint_error import CheckpointError, bad_file

ROOTS = ("", "model.", "model.model.", "conditioner.")
"""Parts that an adapter's names may be inside of: the model, its denoiser (wrapped and bare), its conditioner."""

OTHER_BASE = 1e-3
"""Rows this far (relative) from those of the base are of another version of it; rounding to bfloat16 is below it."""


@dataclass(frozen=True)
class MergeReport:
    """What became of an adapter; `str()` of it is for people.

    merged: number of weights that moved.
    change: norm of the change over the norm of these weights.
    missing: targets that the model does not have.
    mismatched: targets of another shape, with both shapes.
    base_distance: how far the model's weights are from those that the adapter was trained on; None where its file cannot tell.
    """

    source: str
    kind: str
    rank: int
    strength: float
    merged: int
    change: float
    missing: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    base_distance: float | None = None

    def __str__(self) -> str:
        share = "" if self.strength == 1 else f" at strength {self.strength:g}"
        weights = f"{self.merged} weight{'' if self.merged == 1 else 's'}"
        text = f"{self.source}: {self.kind} of rank {self.rank} merged into {weights}{share}, a change of {self.change:.2%} of their norm"
        if self.missing or self.mismatched:
            text += f"; left out: {_misfits(self.missing, self.mismatched)}"
        if self.base_distance is not None and self.base_distance > OTHER_BASE:
            text += f"; it was trained on another version of this model, whose rows differ by {self.base_distance:.1%}"
        return text


@torch.no_grad()
def merge_adapter(model: nn.Module, adapter: Adapter, strength: float = 1.0, *, allow_partial: bool = False) -> MergeReport:
    """Write the updated weights into `model`, computed in float32; nothing changes when this raises.

    Args:
        strength: share of the update; whole tensors that were trained along move by the same share.
        allow_partial: leave out targets that the model lacks or has in another shape, instead of refusing.

    Raises:
        CheckpointError: the adapter was trained on a model of another shape.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    new: dict[str, Tensor] = {}
    missing, mismatched, distances = [], [], []
    for target, update in adapter.updates.items():
        key = _place(f"{target}.weight", state)
        if key is None:
            missing.append(target)
        elif state[key].ndim < 2 or not update.fits(state[key]):
            shape = " x ".join("any" if size is None else str(size) for size in update.shape)
            mismatched.append(f"{target}: adapter {shape}, model {' x '.join(str(size) for size in state[key].shape)}")
        else:
            new[key] = update.apply(state[key], strength)
            distances += [distance for distance in [update.base_distance(state[key])] if distance is not None]
    for name, value in adapter.replacements.items():
        key = _place(name, state)
        if key is None:
            missing.append(name)
        elif state[key].shape != value.shape:
            mismatched.append(f"{name}: adapter {tuple(value.shape)}, model {tuple(state[key].shape)}")
        else:
            new[key] = torch.lerp(state[key].float(), value.to(state[key].device, torch.float32), strength)
    if not new or ((missing or mismatched) and not allow_partial):
        raise _misfit(adapter, missing, mismatched)
    change = _relative_change(state, new)
    for key, value in new.items():
        state[key].copy_(value)
    facts = (adapter.source, adapter.kind, adapter.rank, strength, len(new), change, tuple(missing), tuple(mismatched))
    return MergeReport(*facts, base_distance=max(distances, default=None))


def _place(name: str, state: Mapping[str, Tensor]) -> str | None:
    return next((root + name for root in ROOTS if root + name in state), None)


def _relative_change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    moved = sum(float((value - before[key].float()).square().sum()) for key, value in after.items())
    whole = sum(float(before[key].float().square().sum()) for key in after)
    return (moved / whole) ** 0.5 if whole else float("inf")


def _misfit(adapter: Adapter, missing: list[str], mismatched: list[str]) -> CheckpointError:
    what = f"an adapter of another model: {_misfits(missing, mismatched)}"
    fix = "name the base that it was trained on; --allow-partial takes the part that fits" if len(missing) < len(adapter.updates) else ""
    return bad_file(adapter.source, what, fix or "name the base that it was trained on")


def _misfits(missing: Iterable[str], mismatched: Iterable[str]) -> str:
    named = (("not in this model", list(missing)), ("of another shape", list(mismatched)))
    return "; ".join(f"{len(names)} {what}, first {names[0]}" for what, names in named if names)
