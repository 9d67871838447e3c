"""What an evaluation found: as tables to read, and as the JSON document that reports are made of.

    {"recipe": {...}, "metrics": [{"name", "value", "low", "high", "n", "unit", "better", "recipe"}, ...]}

With an evaluation against the labels of the synthetic dataset, its tables come beside these: "pitched", "unpitched", "by_instrument".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.evaluation.measure import Measure
from stable_audio_tools.evaluation.scores import EvaluationReport
from stable_audio_tools.models.atomic_file import atomic_file

ARROWS = {"lower": "lower is better", "higher": "higher is better", None: ""}
HEAD = ("metric", "value", "95 % interval", "no difference", "clips", "", "recipe")
DETAILS = 5  # rows behind a number that are printed; the JSON has all of them


@dataclass(frozen=True)
class Results:
    """measures: of clips. labelled: against the labels of the synthetic dataset, or None. recipe: what all of it has in common."""

    recipe: Mapping[str, Any]
    measures: Sequence[Measure] = ()
    labelled: EvaluationReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        labelled = {} if self.labelled is None else self.labelled.to_dict()
        measures = [*([] if self.labelled is None else self.labelled.measures()), *self.measures]
        recipe = {**labelled.pop("recipe", {}), **self.recipe}
        return {"recipe": recipe, **labelled, "metrics": [measure.to_dict() for measure in measures]}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_markdown(self) -> str:
        """Tables to read; every number with its interval and the recipe that repeats it."""
        parts = [] if self.labelled is None else [self.labelled.to_markdown()]
        return "\n\n".join([*parts, *([_table(self.measures)] if self.measures else [])])


def _table(measures: Sequence[Measure]) -> str:
    """A Markdown table whose columns also line up as plain text, and below it the recipes that its last column numbers."""
    recipes: list[Mapping[str, Any]] = []
    for measure in measures:
        if measure.recipe not in recipes:
            recipes.append(measure.recipe)
    rows = [HEAD, *((*_cells(measure), f"[{recipes.index(measure.recipe) + 1}]") for measure in measures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows]
    table = "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
    usual = _usual(recipes)
    notes = [f"Recipe: {_facts(usual)}", *(f"[{number}] {_facts(_beyond(usual, recipe))}" for number, recipe in enumerate(recipes, 1))]
    details = [f"{measure.name}: {_facts(row)}" for measure in measures for row in measure.details[:DETAILS]]
    return "\n\n".join([table, *(["\n".join(details)] if details else []), "\n".join(notes)])


def _usual(recipes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What more than half of the recipes say alike."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for recipe in recipes for key in recipe):
        values = [recipe[key] for recipe in recipes if key in recipe]
        most = max(values, key=values.count)
        if 2 * values.count(most) > len(recipes):
            found[key] = most
    return found


def _beyond(usual: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says beside and otherwise than the usual."""
    return {key: value for key, value in recipe.items() if usual.get(key) != value}


def _cells(measure: Measure) -> tuple[str, ...]:
    unit = f" {measure.unit}" if measure.unit else ""
    interval = _range(measure.low, measure.high)
    same = "" if measure.same_source is None else _range(*measure.same_source)
    return measure.name, _figure(measure.value) + unit, interval, same, str(measure.n), ARROWS[measure.better]


def _range(low: float, high: float) -> str:
    return f"{_figure(low)} to {_figure(high)}" if math.isfinite(low) else "-"


def _figure(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _facts(recipe: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in recipe.items()) or "nothing else"


def check_writable(out: str | None, save_audio: str | None) -> None:
    """Before minutes of work: can the results be written where they are wanted?

    Raises:
        ConfigError: they cannot.
    """
    if out:
        folder = Path(out).parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            cause = "its folder cannot be written to" if folder.is_dir() else f"there is no folder {folder}"
            raise ConfigError([Problem((), cause, "name a file in a folder that exists and can be written to")], source=f"--out {out}")
    if save_audio and Path(save_audio).exists() and not Path(save_audio).is_dir():
        raise ConfigError("this is a file; name a folder", source=f"--save-audio {save_audio}")


def write_json(path: Path, results: Results) -> None:
    """
    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        with atomic_file(path) as file:
            file.write((results.to_json() + "\n").encode())
    except OSError as error:
        raise ConfigError(f"cannot write the report: {error.strerror}", source=f"--out {path}") from None
