"""What a run folder holds, read while the run may still be writing it.

A file that is missing is simply not there yet. A file that cannot be read leaves a note for the page and nothing else: the
report is rebuilt often and the next time it will be whole.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stable_audio_tools.report.demos import DemoStep, read_demos
from stable_audio_tools.report.metrics import Metrics, read_metrics


@dataclass(frozen=True)
class RunFolder:
    """The contents of one run folder; `notes` are sentences about what could not be read."""

    path: Path
    run: dict[str, Any]
    setup: dict[str, Any]
    evaluation: Any
    metrics: Metrics
    demos: list[DemoStep]
    notes: list[str] = field(default_factory=list)

    @property
    def running(self) -> bool:
        return self.run.get("status") == "running"


def read_run_folder(path: Path) -> RunFolder:
    """Read everything the report shows.

    Raises:
        FileNotFoundError: there is no folder at `path`.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no run folder at {path}")
    notes: list[str] = []
    run = read_json(path / "run.json", notes)
    if run is not None and not isinstance(run, dict):
        notes.append("run.json is not an object, so the run's state is not known.")
    setup = {name: read_json(path / name, notes) for name in ("config.json", "dataset.json", "args.json")}
    return RunFolder(
        path=path,
        run=run if isinstance(run, dict) else {},
        setup={name: value for name, value in setup.items() if value is not None},
        evaluation=read_json(path / "evaluation.json", notes),
        metrics=read_metrics(path / "metrics.csv", notes),
        demos=read_demos(path / "demos", notes),
        notes=notes,
    )


def read_json(path: Path, notes: list[str]) -> Any:
    """The file's value, or None where it is missing or not readable; the latter leaves a note."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} could not be read: {error}")
        return None


def number(value: Any) -> float | None:
    """`value` where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < sys.float_info.max else None
