"""Does a config mean the same model here and in the peer? Random small configs of every family, built and run by both.

    pip install --target PEER stable-audio-tools==0.0.19
    python benchmarks/peer_agreement.py PEER [--seeds 40] [--family autoencoder --family lm] [--first 0] [--verbose]

For each config: the state_dict's keys, shapes and dtypes; then, on the peer's weights (drawn, so that no branch is zero), every
output and the gradient of every parameter. An error is max|a - b| / (1 + max|b|). Exit status 1 where the two disagree, or where
only the peer runs a config. The peer runs in a process of its own; it is no dependency, and what it imports but these models do
not need is left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import peer_models
import torch
from peer_configs import FAMILIES, case
from peer_models import Case
from torch import Tensor, nn

TOLERANCE = {"out": 1e-4, "grad": 1e-3}  # sums that cancel leave gradients fewer digits
ROUNDING = 8  # times our own distance from float64
FINDINGS = {"refused here alone", "fails here alone", "another layout", "without some results", "another result"}


def compare(item: Case, peer: dict[str, Any]) -> tuple[str, float, str]:
    """What became of a case, the worst error, and where or why."""
    try:
        model = peer_models.build(item, peer=False)
    except Exception as error:  # noqa: BLE001  a result, as the peer's
        return ("refused by both" if "error" in peer else "refused here alone"), 0.0, str(error)
    if "error" in peer:
        return "failed in the peer alone", 0.0, peer["error"].split("\n")[0][:90]
    ours = {key: (tuple(value.shape), value.dtype) for key, value in model.state_dict().items()}
    theirs = {key: (tuple(value.shape), value.dtype) for key, value in peer["state"].items()}
    if different := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
        key = different[0]
        return "another layout", 0.0, f"{len(different)} keys: {key} {ours.get(key)} here, {theirs.get(key)} there"
    model.load_state_dict(peer["state"])
    wanted = {**{f"out.{name}": value for name, value in peer["out"].items()}, **{f"grad.{n}": g for n, g in peer["grad"].items()}}
    try:
        found = results(item, model, peer["sloped"])
    except Exception as error:  # noqa: BLE001  a result, as the peer's
        return "fails here alone", 0.0, f"{type(error).__name__}: {error}"
    if missing := sorted(wanted.keys() - found.keys()):
        return "without some results", 0.0, ", ".join(missing[:4])
    errors = {name: error_of(found[name], value) for name, value in wanted.items()}
    if beyond := [name for name, error in errors.items() if error > TOLERANCE[name.partition(".")[0]]]:
        # In float64, is the peer as near as we are? Then both round, and the model is one that rounding hurts.
        exact = results({**item, "double": True}, model, peer["sloped"])
        if beyond := [name for name in beyond if error_of(wanted[name], exact[name]) > ROUNDING * error_of(found[name], exact[name])]:
            worst = max(beyond, key=lambda name: errors[name])
            return "another result", errors[worst], worst
    return "equal", max(error for name, error in errors.items() if name.startswith("out.")), ""


def results(item: Case, model: nn.Module, sloped: list[str]) -> dict[str, Tensor]:
    """Our outputs and gradients."""
    model.zero_grad()
    out = peer_models.outputs(item, model, peer=False)
    slopes = peer_models.gradients(out, model, sloped)
    return {**{f"out.{name}": value for name, value in out.items()}, **{f"grad.{name}": value for name, value in slopes.items()}}


def error_of(got: Tensor, want: Tensor) -> float:
    if got.shape != want.shape:
        return math.inf
    if not want.numel():
        return 0.0
    value = float((got.detach().double() - want.double()).abs().max()) / (1 + float(want.double().abs().max()))
    return math.inf if math.isnan(value) else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", type=Path, help="the folder that pip installed the peer into")
    parser.add_argument("--seeds", type=int, default=40, help="configs of each family")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="default: all")
    parser.add_argument("--verbose", action="store_true", help="every config that is not equal, as JSON")
    args = parser.parse_args()
    if not (args.peer / "stable_audio_tools").is_dir():
        parser.error(f"there is no stable_audio_tools in {args.peer}: pip install --target {args.peer} stable-audio-tools==0.0.19")
    seeds = range(args.first, args.first + args.seeds)
    cases = [case(family, seed) for family in args.family or FAMILIES for seed in seeds]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cases.json").write_text(json.dumps(cases))
        quiet = None if args.verbose else subprocess.DEVNULL
        path = os.pathsep.join([str(args.peer), str(Path(__file__).parent)])
        subprocess.run(
            [sys.executable, peer_models.__file__, name],
            check=True,
            env={**os.environ, "PYTHONPATH": path},
            cwd=name,
            stdout=quiet,
            stderr=quiet,
        )
        return report(cases, folder, verbose=args.verbose)


def report(cases: list[Case], folder: Path, *, verbose: bool) -> int:
    """Compare every case, print a line for each family and for each case that is not equal; the exit status."""
    rows: dict[str, list[tuple[str, float]]] = {}
    notes: Counter[str] = Counter()
    for item in cases:
        verdict, error, why = compare(item, torch.load(folder / f"{item['name']}.pt"))
        rows.setdefault(item["family"], []).append((verdict, error))
        if verdict in FINDINGS:
            print(f"{item['name']}: {verdict}: {error:.1e} {why}")
            if verbose:
                print(json.dumps(item))
        elif verdict != "equal":
            notes[f"{item['family']}: {verdict}: {why}"] += 1
    for note, count in notes.most_common():
        print(f"{count:4} x {note}")
    for family, results in rows.items():
        counts = Counter(verdict for verdict, _ in results)
        worst = max((error for verdict, error in results if verdict == "equal"), default=0.0)
        print(f"{family}: {len(results)} configs, {', '.join(f'{n} {verdict}' for verdict, n in counts.most_common())}; worst {worst:.1e}")
    return int(any(verdict in FINDINGS for results in rows.values() for verdict, _ in results))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    sys.exit(main())
