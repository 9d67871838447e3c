"""How far a long look at data is: one line that renews itself on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

RENEW_S, LINE_S = 0.2, 10.0
WIDTH = 24  # characters of the bar


class ScanProgress:
    """Is told how many files are done, of how many; writes to standard error."""

    def __init__(self, what: str):
        self.what, self.terminal = what, sys.stderr.isatty()
        self._started = self._told = time.monotonic()
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < self._done:  # the next dataset
            self._started = self._told = now
        self._done = done
        if done >= total:
            self._clear()
        elif now - self._told >= (RENEW_S if self.terminal else LINE_S):
            self._told = now
            self._say(done, total, (now - self._started) / done * (total - done))

    def _say(self, done: int, total: int, left_s: float) -> None:
        text = f"{done} of {total} files, about {duration(left_s)} left"
        if self.terminal:
            filled = WIDTH * done // total
            print(f"\r\x1b[K{self.what} [{'#' * filled}{' ' * (WIDTH - filled)}] {text}", end="", file=sys.stderr, flush=True)
        else:
            print(f"{self.what}: {text}", file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
