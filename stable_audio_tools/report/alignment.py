"""The same demos of several runs, lined up: by what was asked for, then by how, and over the steps by the nearest one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from stable_audio_tools.report.demos import ORIGINAL, DemoStep, Row, group_rows

Line = list[Row | None]
"""One thing to hear against each other: a row of each run, None where the run has none."""


def align(runs: Sequence[list[DemoStep]]) -> list[tuple[str, list[Line]]]:
    """Title and lines of each subject (a prompt, or what a clip was made from), in the order of the first appearance.

    Rows of the same settings share a line; what is left over shares one with what is left over of other runs, since two runs
    of different guidance are compared all the same. An original is the same in all runs and kept once.
    """
    subjects: dict[str, tuple[str, list[list[Row]]]] = {}
    for index, demos in enumerate(runs):
        for group in group_rows(demos):
            for row in group.rows:
                subject = row.first.prompt or row.first.group
                subjects.setdefault(subject, (group.title, [[] for _ in runs]))[1][index].append(row)
    return [(title, _lines(rows)) for title, rows in subjects.values()]


def _lines(runs: Sequence[list[Row]]) -> list[Line]:
    lines: list[Line] = []
    for index, rows in enumerate(runs):
        others = [row for row in rows if not _join(lines, index, row, same_settings=True)]
        for row in others:
            if not _join(lines, index, row, same_settings=False):
                lines.append([row if at == index else None for at in range(len(runs))])
    for line in lines:
        first = next(row for row in line if row)
        if first.first.kind == ORIGINAL:
            line[:] = [row if row is first else None for row in line]
    return sorted(lines, key=lambda line: next(row for row in line if row).first.kind != ORIGINAL)


def _join(lines: list[Line], run: int, row: Row, *, same_settings: bool) -> bool:
    """Put the row into the first line that has room for it and is of its kind; False if there is none."""
    for line in lines:
        other = next(there for there in line if there).first
        if line[run] is None and other.kind == row.first.kind and (not same_settings or other.settings == row.first.settings):
            line[run] = row
            return True
    return False


def nearest(steps: Sequence[int], step: int) -> int:
    """Index of the ascending step nearest to `step`, the later one of two as near."""
    after = bisect_left(steps, step)
    if after == len(steps) or (after > 0 and step - steps[after - 1] < steps[after] - step):
        return after - 1
    return after
