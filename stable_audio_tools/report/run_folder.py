"""What a run folder holds, read while the run may still be writing it.

A file that is missing is simply not there yet. A file that cannot be read leaves a note for the page and nothing else: the
report is rebuilt often and the next time it will be whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stable_audio_tools.report.demos import DemoStep, read_demos
from stable_audio_tools.report.document import string
from stable_audio_tools.report.evaluation import metrics_of, read_evaluations
from stable_audio_tools.report.metrics import Metrics, MetricsReader
from stable_audio_tools.report.values import mapping, read_json

STATUSES = ("running", "finished", "stopped", "failed")
EVALUATED = "eval/"  # what columns of `metrics.csv` begin with that come from evaluations
SETUP = ("config.json", "dataset.json", "args.json")


@dataclass(frozen=True)
class RunFolder:
    """The contents of one run folder.

    run: `run.json`. setup: what was asked for, by file name. plan, data: `plan.json` and `data.json`. evaluation: `evaluation.json`.
    evaluations: those made during training. notes: sentences about what could not be read.
    """

    path: Path
    run: dict[str, Any]
    setup: dict[str, Any]
    plan: dict[str, Any]
    data: dict[str, Any]
    evaluation: Any
    evaluations: list[dict[str, Any]]
    metrics: Metrics
    demos: list[DemoStep]
    notes: list[str] = field(default_factory=list)

    @property
    def running(self) -> bool:
        return self.run.get("status") == "running"

    @property
    def status(self) -> str:
        """The run's state as one of `STATUSES`, or "unknown"."""
        return self.run["status"] if self.run.get("status") in STATUSES else "unknown"

    @property
    def name(self) -> str:
        return string(self.run.get("name")) or self.path.resolve().name

    @property
    def logged(self) -> Metrics:
        """`metrics.csv` without what `evaluations` says with intervals."""
        known = {f"{EVALUATED}{metric['name']}" for entry in self.evaluations for metric in metrics_of(entry)}
        return Metrics({name: series for name, series in self.metrics.series.items() if name not in known}, self.metrics.clock)

    @property
    def last_step(self) -> float:
        """The last step that has a number."""
        curves = [series.steps[-1] for series in self.metrics.series.values()]
        return max([*curves, *(entry["step"] for entry in self.evaluations)], default=0)


def read_run_folder(path: Path, reader: MetricsReader | None = None) -> RunFolder:
    """Read everything the report shows.

    Args:
        reader: of the metrics; one that has read those of this run before has only the new lines to read.

    Raises:
        FileNotFoundError: there is no folder at `path`.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no run folder at {path}")
    notes: list[str] = []
    run = read_json(path / "run.json", notes)
    if run is not None and not isinstance(run, dict):
        notes.append("run.json is not an object, so the run's state is not known.")
    setup = {name: read_json(path / name, notes) for name in SETUP}
    return RunFolder(
        path=path,
        run=mapping(run),
        setup={name: value for name, value in setup.items() if value is not None},
        plan=mapping(read_json(path / "plan.json", notes)),
        data=mapping(read_json(path / "data.json", notes)),
        evaluation=read_json(path / "evaluation.json", notes),
        evaluations=read_evaluations(path / "evaluations.jsonl", notes),
        metrics=(reader or MetricsReader()).read(path / "metrics.csv", notes),
        demos=read_demos(path / "demos", notes),
        notes=notes,
    )
