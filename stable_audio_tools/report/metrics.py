"""`metrics.csv` as curves: tolerant of half-written lines, rewinds after a resume, NaN, and of hundreds of thousands of rows.

The file is wide: `step`, `time_s`, then one column a metric, blank where nothing was logged. A column may appear later, with
the header rewritten or repeated.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POINTS = 500  # most points of a drawn curve; chosen: one for every two pixels of the widest chart
MARKS = 100  # most marks of values that are no number
PACE_SHARE = 0.2  # the speed is measured over the last fifth of the rows
CLOCK = "time_s"
SPLITS = ("train", "val", "test")  # metrics that differ only in this prefix share a chart


@dataclass
class Series:
    """One metric: `steps` strictly ascending, `values` may be NaN or infinite."""

    steps: array = field(default_factory=lambda: array("d"))
    values: array = field(default_factory=lambda: array("d"))

    def add(self, step: float, value: float) -> None:
        """Append a point. What was logged at this step or later came from a stretch that a resume has done again: it goes."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.steps.append(step)
        self.values.append(value)

    @property
    def last(self) -> float | None:
        """The newest finite value."""
        return next((value for value in reversed(self.values) if math.isfinite(value)), None)

    @property
    def best(self) -> tuple[float, float] | None:
        """Step and value of the smallest finite value."""
        finite = [(value, step) for step, value in zip(self.steps, self.values, strict=True) if math.isfinite(value)]
        return min(finite)[::-1] if finite else None


@dataclass(frozen=True)
class Metrics:
    """Curves by name in column order; `time_s` is the clock, not a curve."""

    series: dict[str, Series]
    clock: Series

    @property
    def pace(self) -> float | None:
        """Steps a second of late, or None before two rows with a time."""
        count = len(self.clock.steps)
        first = max(0, min(count - 2, int(count * (1 - PACE_SHARE))))
        if count < 2 or not self.clock.values[-1] > self.clock.values[first]:
            return None
        return (self.clock.steps[-1] - self.clock.steps[first]) / (self.clock.values[-1] - self.clock.values[first])


class MetricsReader:
    """Reads a `metrics.csv` again and again: of a file that has only grown since, it takes the new lines."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._seen = b""
        self._header: list[str] = []
        self._columns: dict[str, Series] = {}
        self._unreadable = 0

    def read(self, path: Path, notes: list[str]) -> Metrics:
        """The metrics of now; a missing file has no curves. Lines that make no sense are counted in a note."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        except OSError as error:
            notes.append(f"metrics.csv could not be read: {error}")
            content = b""
        # A last line without its line end is still being written and is left out.
        whole = content[: content.rfind(b"\n") + 1]
        if not whole.startswith(self._seen):
            self._forget()
        for cells in _rows(whole[len(self._seen) :]):
            self._take(cells)
        self._seen = whole
        if self._unreadable:
            notes.append(f"metrics.csv: {self._unreadable} unreadable lines or cells were left out.")
        named = [name for name in self._header if name in self._columns] + list(self._columns)
        series = {name: self._columns[name] for name in named if name != CLOCK}
        return Metrics(series, self._columns.get(CLOCK, Series()))

    def _take(self, cells: list[str]) -> None:
        if cells[:1] == ["step"]:
            self._header = cells
            return
        step = _number(cells[0]) if cells else None
        if not self._header or step is None or not math.isfinite(step):
            self._unreadable += 1
            return
        for name, cell in zip(self._header[1:], cells[1:], strict=False):
            value = _number(cell) if cell else None
            if value is not None:
                self._columns.setdefault(name, Series()).add(step, value)
            elif cell:
                self._unreadable += 1


def _rows(content: bytes) -> Iterator[list[str]]:
    """The cells of each line."""
    for line in content.decode("utf-8-sig", errors="replace").split("\n"):
        # Each line by itself: an unclosed quote must not swallow the lines after it.
        if line.strip():
            yield next(csv.reader([line.rstrip("\r")]), [])


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def charts(metrics: Metrics) -> list[dict[str, Any]]:
    """Chart specifications for the page, the loss first: metrics that differ only in train/val/test share one chart."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for name, series in metrics.series.items():
        split, _, rest = name.partition("/")
        title = rest if split in SPLITS and rest else name
        grouped.setdefault(title, []).append({"name": name, **curve(series)})
    return [{"title": title, "series": grouped[title]} for title in sorted(grouped, key=rank)]


def rank(title: str) -> int:
    """0 for the loss, 1 for its kin and the rest in the order of the file (sorting is stable)."""
    return 0 if title == "loss" else 1 if title.startswith("loss") else 2


def curve(series: Series) -> dict[str, Any]:
    """At most `POINTS` points of a series, ready for JSON.

    Returns:
        `steps` and `values`: the points, or per bucket of neighbouring points the first step and the mean; None where no
        value is finite. `low`, `high`: the range in each bucket, only where there is more than one point in it.
        `bad`: steps at which the value was NaN or infinite, at most `MARKS` of them.
    """
    import numpy as np

    steps, values = np.asarray(series.steps), np.asarray(series.values)
    finite = np.isfinite(values)
    edges = np.unique(np.linspace(0, len(values), min(len(values), POINTS) + 1).astype(int))[:-1]
    if not len(edges):
        return {"steps": [], "values": [], "bad": []}
    counts = np.add.reduceat(finite.astype(float), edges)
    with np.errstate(over="ignore"):
        sums = np.add.reduceat(np.where(finite, values, 0.0), edges)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    bad = steps[~finite]
    drawn = {"steps": steps[edges].tolist(), "values": _json(means), "bad": bad[:: len(bad) // MARKS + 1].tolist()}
    if len(edges) < len(values):
        low = np.minimum.reduceat(np.where(finite, values, np.inf), edges)
        high = np.maximum.reduceat(np.where(finite, values, -np.inf), edges)
        drawn |= {"low": _json(low), "high": _json(high)}
    return drawn


def _json(values: Any) -> list[float | None]:
    """Six digits are more than a pixel can show; JSON has no NaN."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
