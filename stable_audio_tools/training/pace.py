"""How fast training goes and how long it waits for data: a few numbers for every row of metrics."""

from __future__ import annotations

import time

import torch


class Pace:
    """A clock that the host starts and stops around each batch. Validation, demos and saves are in none of its numbers.

    steps_per_s, samples_per_s: train steps, and clips of all processes together, a second of steps and of waiting for data.
    data_wait: share of that time, 0 to 1, in which the next batch was not there yet.
    gpu_memory_gb: most memory, in 10^9 bytes, that tensors took on this process's GPU since the row before.
    """

    def __init__(self) -> None:
        self._busy = self._waited = 0.0
        self._steps = self._clips = 0
        self._began = 0.0
        self._ready: float | None = None

    def begin(self, clips: int) -> None:
        """A batch of `clips` has come."""
        self._began = time.monotonic()
        self._clips += clips
        if self._ready is not None:
            self._waited += self._began - self._ready

    def worked(self, *, stepped: bool) -> None:
        """The batch has been trained on; `stepped`: it was the last one of its train step."""
        self._busy += time.monotonic() - self._began
        self._steps += stepped

    def ready(self) -> None:
        """All else is done too, and the next batch may come."""
        self._ready = time.monotonic()

    def pop(self, device: torch.device) -> dict[str, float]:
        """The numbers since the last call."""
        seconds = max(self._busy + self._waited, 1e-9)
        found = {"steps_per_s": self._steps / seconds, "samples_per_s": self._clips / seconds, "data_wait": self._waited / seconds}
        if device.type == "cuda":
            found["gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
            torch.cuda.reset_peak_memory_stats(device)
        self._busy = self._waited = 0.0
        self._steps = self._clips = 0
        return found
