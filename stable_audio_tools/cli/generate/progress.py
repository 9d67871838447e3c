"""How far the clips of a command are: one line that renews itself on a terminal, a line a batch elsewhere."""

from __future__ import annotations

import logging
import sys
import time

from stable_audio_tools.cli.scan_progress import RENEW_S, duration

log = logging.getLogger(__name__)


class ClipProgress:
    """Of `count` clips in all. Is told of each batch, and then how many of its steps are done."""

    def __init__(self, count: int):
        self.count, self.terminal = count, sys.stderr.isatty()
        self._done = self._batch = 0
        self._started = time.monotonic()
        self._told = 0.0

    def begin(self, batch: int) -> None:
        """A batch of so many clips begins; the one before is done."""
        self._done, self._batch = self._done + self._batch, batch
        if not self.terminal:
            left = f", about {duration(self._left(0.0))} left" if self._done else ""
            log.info("%s%s", self._clips(), left)

    def __call__(self, step: int, steps: int) -> None:
        now = time.monotonic()
        if self.terminal and (now - self._told >= RENEW_S or step == steps):
            self._told = now
            share = min(step / steps, 1)  # a sampler that chooses its steps may take more
            text = f"{self._clips()}, step {step} of {steps}, about {duration(self._left(share))} left"
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Nothing more is to come, or other text."""
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _clips(self) -> str:
        first, last = self._done + 1, self._done + self._batch
        return f"clip {first} of {self.count}" if first == last else f"clips {first} to {last} of {self.count}"

    def _left(self, share: float) -> float:
        """Seconds, when this share of the batch is done."""
        done = self._done + share * self._batch
        return (time.monotonic() - self._started) / done * (self.count - done)
