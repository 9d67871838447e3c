"""What `evaluate` measured: `evaluation.json` as tables, and `evaluations.jsonl`, measured during training, as curves.

A metric is `{"name", "value", "low", "high", "n", "recipe", "better"}`: its confidence interval, the number of clips, how it was
measured, and whether "lower" or "higher" is better. Whatever else a file says is shown as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from stable_audio_tools.report.document import definitions, figure, table, words
from stable_audio_tools.report.values import number

ARROWS = {"lower": "↓ lower is better", "higher": "↑ higher is better"}


def read_evaluations(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The lines of `evaluations.jsonl`, one for a step, the newest of each; a line that makes no sense is counted in a note."""
    try:
        lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        notes.append(f"{path.name} could not be read: {error}")
        return []
    found: dict[float, dict[str, Any]] = {}
    unreadable = 0
    for line in filter(str.strip, lines):
        entry = _entry(line)
        if entry is None:
            unreadable += 1
            continue
        # What was measured at a later step came from a stretch that a resume has done again.
        found = {step: kept for step, kept in found.items() if step < entry["step"]} | {entry["step"]: entry}
    if unreadable:
        notes.append(f"{path.name}: {unreadable} unreadable lines were left out.")
    return list(found.values())


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or number(entry.get("step")) is None or not isinstance(entry.get("metrics"), list):
        return None
    return entry


def metrics_of(value: Any) -> list[dict[str, Any]]:
    """The metrics of an evaluation; none where it has another form."""
    metrics = value.get("metrics") if isinstance(value, dict) else None
    return [metric for metric in metrics if isinstance(metric, dict) and "name" in metric] if isinstance(metrics, list) else []


def evaluation_charts(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One chart for each metric over the steps, with the interval of each value; None where there is no number."""
    curves: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for metric in metrics_of(entry):
            name = str(metric["name"])
            curve = curves.setdefault(name, {"name": name, "steps": [], "values": [], "low": [], "high": [], "bad": [], "bars": True})
            curve["steps"].append(entry["step"])
            for key, source in (("values", "value"), ("low", "low"), ("high", "high")):
                curve[key].append(number(metric.get(source)))
            curve["better"] = metric.get("better") if metric.get("better") in ARROWS else None
    return [{"title": words(name), "series": [curve]} for name, curve in curves.items()]


def evaluation_html(value: Any) -> str:
    """All of `evaluation.json`: its metrics as one table, the rest as facts and tables. Nothing for no evaluation."""
    if not isinstance(value, dict):
        return ""
    metrics = metrics_of(value)
    rest = {name: item for name, item in value.items() if not (metrics and name == "metrics")}
    return (_metrics_table(metrics) if metrics else "") + (_tables(rest) if rest else "")


def _metrics_table(metrics: list[dict[str, Any]]) -> str:
    rows = ((words(metric["name"]), _metric_cells(metric)) for metric in metrics)
    return table("Metrics", ("Value", "Interval", "Clips", "Better", "Recipe"), rows)


def _metric_cells(metric: Mapping[str, Any]) -> Iterator[str]:
    low, high = number(metric.get("low")), number(metric.get("high"))
    yield f"<strong>{escape(figure(metric.get('value')))}</strong>"
    yield escape(f"{figure(low)} to {figure(high)}") if low is not None and high is not None else "–"
    yield escape(figure(metric.get("n")))
    yield escape(ARROWS.get(str(metric.get("better")), "–"))
    yield _recipe(metric.get("recipe"))


def _recipe(recipe: Any) -> str:
    """How a value was measured, folded away."""
    if not recipe:
        return "–"
    text = "\n".join(f"{words(name)}: {_cell(item)}" for name, item in recipe.items()) if isinstance(recipe, dict) else _cell(recipe)
    return f'<details class="recipe"><summary>how</summary><p>{escape(text)}</p></details>'


def _tables(value: Mapping[str, Any], title: str = "") -> str:
    """A nested mapping as HTML: plain values as a list of facts, a mapping of like rows as a table, deeper ones below it."""
    if _is_table(value):
        columns = list(dict.fromkeys(column for row in value.values() for column in row))
        rows = ((words(name), (escape(_cell(row.get(column))) for column in columns)) for name, row in value.items())
        return table(words(title), map(words, columns), rows)
    deeper = {name: item for name, item in value.items() if isinstance(item, dict) and not _is_share(item)}
    facts = [(words(name), _cell(item)) for name, item in value.items() if name not in deeper]
    heading = f"<h3>{escape(words(title))}</h3>" if title else ""
    parts = [f'<div class="plain">{heading}<dl class="facts">{definitions(facts)}</dl></div>'] if facts else []
    return "".join(parts + [_tables(item, f"{title} · {name}" if title else str(name)) for name, item in deeper.items()])


def _is_table(value: Mapping[str, Any]) -> bool:
    rows = value.values()
    return bool(rows) and all(isinstance(row, dict) and not _is_share(row) and all(map(_is_cell, row.values())) for row in rows)


def _is_cell(value: Any) -> bool:
    return not isinstance(value, dict) or _is_share(value)


def _is_share(value: Any) -> bool:
    """A measured share with its interval, as `evaluation` writes it."""
    return isinstance(value, dict) and all(number(value.get(key)) is not None for key in ("share", "low", "high"))


def _cell(value: Any) -> str:
    if _is_share(value):
        return f"{value['share']:.1%} ({100 * value['low']:.0f} to {100 * value['high']:.0f})"
    return ", ".join(map(figure, value)) if isinstance(value, list) else figure(value)
