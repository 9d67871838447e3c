"""`evaluate --model FILE or RUN_DIR`, or `--audio FOLDER`: measures what a model makes, or files, beside real sounds.

A model of the synthetic dataset is measured against its labels: prompts whose combinations it was not trained on. Any other, and any
for which `--metrics` and the like ask, is measured by distances between its clips and those of a dataset, and by whatever else fits.
The figures of a run also go into its folder, as `evaluation.json`, and into its report. The same command gives the same figures.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from stable_audio_tools.cli.evaluate.flags import check_flags, configure
from stable_audio_tools.cli.plugins import import_plugins

__all__ = ["configure", "run"]

log = logging.getLogger(__name__)
RUN = "run.json"


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    import_plugins(args.plugins)
    check_flags(args)
    from stable_audio_tools.cli.evaluate.files import evaluate_files
    from stable_audio_tools.cli.evaluate.model import evaluate_model
    from stable_audio_tools.cli.evaluate.results import check_writable, write_json
    from stable_audio_tools.report import build_report

    check_writable(args.out, args.save_audio)
    results = evaluate_files(args) if args.audio else evaluate_model(args)
    print(results.to_json() if args.json else results.to_markdown())
    if args.out:
        write_json(Path(args.out), results)
    if args.model and (Path(args.model) / RUN).is_file():
        write_json(Path(args.model) / "evaluation.json", results)
        log.info("report: %s", build_report(Path(args.model)))
    return 0
