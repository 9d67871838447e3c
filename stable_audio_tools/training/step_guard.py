"""What of a train step is not finite, whose fault it is, and how many such steps there were.

A step whose input, loss or gradient is NaN or infinite on any rank is *bad*: the host drops it on all of them. Nothing here
waits for a device but `verdict`, once for each optimizer step; the rest is looked into only after a bad one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

MAX_BAD_STEPS = 10  # chosen: at the usual rate of one bad file in thousands, ten in a row are the weights' fault
NAMES_SHOWN = 8
Verdict = Literal["good", "overflow", "bad"]


@dataclass(frozen=True)
class Taken:
    """A loss that was taken in this step: its scalar value, the detached scalars to log, and what its batch was made of."""

    loss: Tensor
    logs: Mapping[str, Any]
    names: tuple[str, ...]


class Cause(NamedTuple):
    """What is not finite, and the items of the batch. known_here: it is this rank's input or loss; gradients are those of all ranks."""

    text: str
    known_here: bool


class StepGuard:
    """Collects what a train step did until it is known whether it counts.

    limit: bad steps in a row after which training ends; 0: it never does.
    skipped, in_a_row: bad steps so far, and those since the last good one.
    cause: why the step that is being taken is bad; None while it is not known to be.
    """

    def __init__(self) -> None:
        self.limit = MAX_BAD_STEPS
        self.skipped = self.in_a_row = 0
        self._begin()

    def _begin(self) -> None:
        self.verdict: Verdict = "good"
        self.cause: str | None = None
        self._taken: list[Taken] = []
        self._noted: dict[str, Tensor] = {}
        self._names: tuple[str, ...] = ()

    def state_dict(self) -> dict[str, int]:
        """Also whether the step that is being taken, where a checkpoint falls between its micro-batches, is bad already."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "bad_now": int(self.cause is not None or self.verdict == "bad")}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Checkpoints from before there were such numbers have none."""
        self.skipped, self.in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)
        self.verdict = "bad" if state.get("bad_now") else "good"

    def look_at_input(self, batch: Any) -> None:
        """See whether a batch, still where the data loader left it, is finite, and what it is made of."""
        signal, self._names = _signal_and_names(batch)
        bad = _bad_items(signal)
        if bad:
            self.cause = f"the audio of {_listed([self._names[i] for i in bad])} is not finite"

    def take(self, loss: Tensor, logs: Mapping[str, Any]) -> None:
        """Remember a loss, whose backward pass follows."""
        self._taken.append(Taken(loss.detach(), logs, self._names))

    def note(self, logs: Mapping[str, Tensor]) -> None:
        """Remember more scalars to log, each name once in a step."""
        self._noted |= logs

    def logs(self) -> Iterator[Mapping[str, Any]]:
        """All that is to be logged of this step."""
        yield from (taken.logs for taken in self._taken)
        yield self._noted

    def signs(self, norm: Tensor) -> Tensor:
        """(2,) float: 1 where a loss, and where the gradient of this norm, is not finite, on this rank. To be summed over the ranks."""
        losses = torch.stack([taken.loss.reshape(()) for taken in self._taken]).float()
        return torch.stack([~losses.isfinite().all(), ~norm.isfinite().to(losses.device)]).float()

    def judge(self, signs: Tensor, *, loss_scale: float) -> Verdict:
        """Whether the optimizer may step, by the signs of all ranks. The step's one wait for the device.

        Args:
            loss_scale: of a GradScaler, which is there to find out where gradients overflow; 1 without one.
        """
        loss, gradient = signs.tolist()
        if loss or gradient:
            self.verdict = "overflow" if not loss and loss_scale > 1 else "bad"
        return self.verdict

    def explain(self, parameters: Mapping[str, nn.Parameter]) -> Cause | None:
        """Why the step is bad, as far as this rank can tell."""
        if self.cause is not None:
            return Cause(self.cause, known_here=True)
        guilty = [taken for taken in self._taken if not bool(taken.loss.isfinite())]
        what = _bad_logs(guilty) or _bad_gradient(parameters)
        if what is None:
            return None
        names = [name for taken in guilty or self._taken for name in taken.names]
        return Cause(f"{what}; batch: {_listed(list(dict.fromkeys(names)))}", known_here=bool(guilty))

    def finish(self) -> bool:
        """Count the step and get ready for the next; True: it is one bad step in a row too many."""
        bad = self.verdict == "bad"
        self.skipped += bad
        if self.verdict != "overflow":
            self.in_a_row = self.in_a_row + 1 if bad else 0
        self._begin()
        return bad and self.in_a_row == self.limit


def _signal_and_names(batch: Any) -> tuple[Tensor | None, tuple[str, ...]]:
    """The audio or latents (B, C, T) of a batch and what each item is called; other batches than the loaders' have neither."""
    match batch:
        case (Tensor() as signal, [*metadata]):
            names = [item.get("path", item.get("__key__")) if isinstance(item, Mapping) else None for item in metadata]
            return signal, tuple(f"item {index} of the batch" if name is None else str(name) for index, name in enumerate(names))
    return None, ()


def _bad_items(signal: Tensor | None) -> list[int]:
    """Which items of a signal (B, C, T), or (1, B, C, T), are not finite."""
    if signal is None or not signal.is_floating_point() or bool(signal.sum(dtype=torch.float32).isfinite()):
        return []
    items = signal[0] if signal.ndim == 4 and signal.shape[0] == 1 else signal
    return [index for index, item in enumerate(items) if not bool(item.isfinite().all())]


def _bad_logs(guilty: Sequence[Taken]) -> str | None:
    """The terms of the losses that are not finite; the sums of them only where no term is."""
    if not guilty:
        return None
    scalars = [(name, value) for taken in guilty for name, value in taken.logs.items() if isinstance(value, Tensor) and value.numel() == 1]
    found = {name: float(value) for name, value in scalars}
    bad = {name: value for name, value in found.items() if "loss" in name and not _finite(value)}
    terms = {name: value for name, value in bad.items() if name != "loss"} or bad
    return ", ".join(f"{name} = {value}" for name, value in terms.items()) or f"loss = {float(guilty[0].loss)}"


def _finite(value: float) -> bool:
    return value - value == 0


def _bad_gradient(parameters: Mapping[str, nn.Parameter]) -> str | None:
    for name, parameter in parameters.items():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"the gradient of {name} is not finite, though the loss is"
    return None


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" (+{more})" if more > 0 else "")
