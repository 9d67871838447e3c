"""`report RUN [RUN ...]`: a run's page built anew, or one page that compares several."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_audio_tools.cli.plugins import add_plugins_flag, import_plugins
from stable_audio_tools.configs.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

MARKS = ("run.json", "config.json", "metrics.csv")  # a folder with one of them is a run's
OUT = "comparison.html"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run; of several, the first is the one to compare with")
    parser.add_argument("--out", metavar="FILE", help=f"the page that compares several runs (default: {OUT})")
    parser.add_argument("--plan", action="store_true", help="first work out what each run needs, and keep it as plan.json in its folder")
    add_plugins_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Build the page; returns 0."""
    import_plugins(args.plugins)
    from stable_audio_tools.report import build_comparison, build_report

    folders = [Path(name) for name in args.runs]
    _check(folders, args.out)
    out = Path(args.out or OUT)
    try:
        for folder in folders if args.plan else ():
            _write_plan(folder)
        print(build_report(folders[0]) if len(folders) == 1 else build_comparison(folders, out))
    except OSError as error:
        raise ConfigError(f"cannot write the page: {error.strerror}", source=str(error.filename or out)) from None
    return 0


def _check(folders: Sequence[Path], out: str | None) -> None:
    from stable_audio_tools.report.compare import MOST_RUNS

    problems = [problem for folder in folders if (problem := _problem(folder))]
    if len(folders) != len({folder.resolve() for folder in folders}):
        problems.append(Problem((), "a run is named twice", "name each once"))
    if len(folders) > MOST_RUNS:
        problems.append(Problem((), f"{len(folders)} runs", f"one page compares {MOST_RUNS} at most"))
    if out and len(folders) == 1:
        problems.append(Problem((), f"--out {out} has no effect for one run, whose page is {folders[0] / 'index.html'}", "leave --out out"))
    if out and not Path(out).parent.is_dir():
        problems.append(Problem((), f"--out {out}: there is no folder {Path(out).parent}", "name a file in a folder that exists"))
    elif out and Path(out).is_dir():
        problems.append(Problem((), f"--out {out} is a folder", f"name a file, such as {Path(out) / OUT}"))
    if problems:
        raise ConfigError(problems, source="report")


def _problem(folder: Path) -> Problem | None:
    if not folder.is_dir():
        return Problem((), f"there is no folder {folder}", "name the folder of a run, such as runs/quickstart")
    if any((folder / name).is_file() for name in MARKS):
        return None
    inside = sorted({str(path.parent) for name in MARKS for path in folder.glob(f"*/{name}")})
    runs = " ".join(inside[:3])
    return Problem((), f"{folder} is not the folder of a run: it has no {', '.join(MARKS)}", f"did you mean {runs}?" if runs else "")


def _write_plan(folder: Path) -> None:
    """What the run needs, with the batch and the precision that it was trained with."""
    from stable_audio_tools.configs.parse import read_json
    from stable_audio_tools.models.atomic_file import atomic_file
    from stable_audio_tools.training.config import parse_run_config
    from stable_audio_tools.training.plan import make_plan

    path = folder / "config.json"
    document, text = read_json(path)
    state = _known(folder / "args.json") | _known(folder / "run.json")
    # "auto" is what a run of before wrote, whose precision is not known: 32-true needs most.
    precision = state["precision"] if state.get("precision") not in (None, "auto") else "32-true"
    sizes = {name: max(1, int(state.get(name) or 1)) for name in ("batch_size", "accum_batches")}
    plan = make_plan(parse_run_config(document, str(path), text), precision=precision, **sizes)
    with atomic_file(folder / "plan.json") as file:
        file.write((json.dumps(plan.to_dict(), indent=1) + "\n").encode())


def _known(path: Path) -> dict[str, Any]:
    from stable_audio_tools.configs.parse import read_json

    return read_json(os.fspath(path))[0] if path.is_file() else {}
