"""What `evaluate` measured: `evaluation.json` as tables, and `evaluations.jsonl`, measured during training, as curves.

A metric is what `evaluation.measure` writes: `{"name", "value", "low", "high", "n", "unit", "better", "recipe", "same_source", "details"}`.
Whatever else a file says is shown as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from stable_audio_tools.report.document import asset, definitions, figure, string, table, words
from stable_audio_tools.report.values import items, mapping, number

MEASURED = {"model", "train_step"}  # in recipes: what was measured, not how
SHARE = "share"  # the unit of what is shown in per cent
DETAILS = 20  # rows behind a value that are shown
ARROWS = {"lower": "↓ lower", "higher": "↑ higher"}


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


def measured(value: Any) -> dict[str, dict[str, Any]]:
    """All that an evaluation measured, by name, as metrics: the listed ones, else every number and share in it."""
    if listed := metrics_of(value):
        return {str(metric["name"]): {"recipe": value.get("recipe")} | metric for metric in listed}
    if not isinstance(value, dict):
        return {}
    rest = {key: item for key, item in value.items() if key != "recipe"}
    return {name: {**metric, "recipe": value.get("recipe")} for name, metric in _numbers(rest)}


def _numbers(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, item in value.items():
        name = f"{above} · {key}" if above else str(key)
        if _is_share(item):
            yield name, {"value": item["share"], "low": item["low"], "high": item["high"], "unit": SHARE}
        elif isinstance(item, dict):
            yield from _numbers(item, name)
        elif number(item) is not None:
            yield name, {"value": item}


def evaluation_charts(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One chart for each metric over the steps, with the interval of each value, None where there is no number, and the last recipe."""
    curves: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for metric in metrics_of(entry):
            name = str(metric["name"])
            curve = curves.setdefault(name, {"name": name, "steps": [], "values": [], "low": [], "high": [], "bad": [], "bars": True})
            curve["steps"].append(entry["step"])
            curve["title"] = f"{words(name)} ({string(metric['unit'])})" if metric.get("unit") else words(name)
            for key, source in (("values", "value"), ("low", "low"), ("high", "high")):
                curve[key].append(number(metric.get(source)))
            curve["better"] = better(metric)
            curve["recipe"] = "\n".join(_recipe(method(metric.get("recipe"))))
    return [{"title": curve.pop("title"), "series": [curve]} for curve in curves.values()]


def better(metric: Mapping[str, Any]) -> str | None:
    """ "lower" or "higher", None where a metric describes and does not judge."""
    return next((way for way in ARROWS if metric.get("better") == way), None)


def method(recipe: Any) -> Any:
    """A recipe without what says which weights were measured."""
    return {key: item for key, item in recipe.items() if key not in MEASURED} if isinstance(recipe, dict) else recipe


def measured_sections(tables: str, *, curves: bool) -> str:
    """The sections of evaluations and of metrics; `curves`: whether there are evaluations to draw."""
    return Template(asset("measured.html")).substitute(no_evaluation="" if tables or curves else " hidden", evaluation=tables)


def evaluation_html(value: Any) -> str:
    """All of `evaluation.json`: its metrics as one table, the rest as facts and tables. Nothing for no evaluation."""
    if not isinstance(value, dict):
        return ""
    metrics = metrics_of(value)
    rest = {name: item for name, item in value.items() if not metrics or name not in ("metrics", "recipe")}
    recipe = mapping(value.get("recipe")) if metrics else {}
    return (_metrics_table(metrics) if metrics else "") + (_tables(recipe, "recipe") if recipe else "") + (_tables(rest) if rest else "")


def _metrics_table(metrics: list[dict[str, Any]]) -> str:
    columns = ["Value", "95 % interval", "Clips", "Better", "Recipe"]
    if any(_range(metric.get("same_source"), None) for metric in metrics):
        columns.insert(2, "If there were no difference")
    return table("Metrics", columns, ((words(metric["name"]), _metric_cells(metric, len(columns) > 5)) for metric in metrics))


def _metric_cells(metric: Mapping[str, Any], compared: bool) -> Iterator[str]:
    yield f"<strong>{escape(reading(metric))}</strong>"
    yield escape(interval(metric) or "–")
    if compared:
        yield escape(_range(metric.get("same_source"), metric.get("unit")) or "–")
    yield escape(figure(metric.get("n")))
    yield ARROWS.get(better(metric) or "", "–")
    yield (_folded("how", _recipe(metric.get("recipe"))) + _folded("details", _details(metric.get("details")))) or "–"


def reading(metric: Mapping[str, Any]) -> str:
    """As in "0.412", "-3.1 dB" or, of a share, "97.9%"."""
    unit = metric.get("unit")
    text = _number(metric.get("value"), unit)
    return text if unit == SHARE else f"{text} {string(unit)}".strip()


def interval(metric: Mapping[str, Any]) -> str:
    return _range([metric.get("low"), metric.get("high")], metric.get("unit"))


def _range(ends: Any, unit: Any) -> str:
    """As in "0.41 to 0.52"; nothing where it is no pair of numbers."""
    found = [number(end) for end in ends] if isinstance(ends, list) else []
    return " to ".join(_number(end, unit) for end in found) if len(found) == 2 and None not in found else ""


def _number(measured: Any, unit: Any) -> str:
    return f"{measured:.1%}" if unit == SHARE and number(measured) is not None else figure(measured)


def _recipe(recipe: Any) -> list[str]:
    """How a value was measured."""
    if isinstance(recipe, dict):
        return [f"{words(name)}: {_cell(item)}" for name, item in recipe.items()]
    return [_cell(recipe)] if recipe else []


def _details(rows: Any) -> list[str]:
    """What is behind a value, such as the closest pairs."""
    found = [" · ".join(f"{words(name)} {_cell(item)}" for name, item in row.items()) for row in items(rows) if isinstance(row, dict)]
    return found[:DETAILS] + [f"and {len(found) - DETAILS} more"] * (len(found) > DETAILS)


def _folded(title: str, lines: list[str]) -> str:
    return f'<details class="recipe"><summary>{title}</summary><p>{escape(chr(10).join(lines))}</p></details>' if lines else ""


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
