"""`plan CONFIG`: parameters, operations, memory and disk of a run, and the largest batch, before anything is trained."""

from __future__ import annotations

import argparse
import json
import re
from typing import TYPE_CHECKING, Any

from stable_audio_tools.cli.plugins import add_plugins_flag, import_plugins
from stable_audio_tools.configs.errors import ConfigError, Problem

if TYPE_CHECKING:
    from stable_audio_tools.training.plan import Plan

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", re.IGNORECASE)
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="JSON file of a model, with its training section")
    parser.add_argument("--batch-size", type=int, default=1, help="clips a batch on each device; default 1")
    parser.add_argument("--accum-batches", type=int, default=1, help="batches whose gradients are added up before a step; default 1")
    parser.add_argument("--precision", choices=PRECISIONS, default="32-true", help="as in training; default 32-true")
    parser.add_argument("--memory", metavar="SIZE", help="memory of the device, such as 24GiB: plan the largest batch that fits")
    parser.add_argument("--json", action="store_true", help="print the plan for machines")
    add_plugins_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan of a config; returns 0, or 2 where not even one clip fits the memory."""
    import_plugins(args.plugins)
    from stable_audio_tools.configs.parse import read_json
    from stable_audio_tools.training.config import parse_run_config
    from stable_audio_tools.training.plan import largest_batch, make_plan

    for flag in ("batch_size", "accum_batches"):
        if getattr(args, flag) < 1:
            raise _bad_flag(flag, "expected 1 or more", getattr(args, flag))
    limit = None if args.memory is None else parse_size(args.memory)
    document, text = read_json(args.config)
    config = parse_run_config(document, args.config, text)
    options = {"precision": args.precision, "accum_batches": args.accum_batches}
    plan = make_plan(config, batch_size=args.batch_size, **options)
    largest = None if limit is None else largest_batch(config, limit, **options)
    if args.json:
        fits = {} if limit is None else {"memory_limit": limit, "largest_batch": largest.batch_size if largest else 0}
        print(json.dumps({"file": args.config, **_clip(config), **plan.to_dict(), **fits}, indent=2))
    else:
        print("\n".join([f"{args.config}: {config.model_type}", *_lines(plan, config)]))
        if limit is not None:
            print(_verdict(largest, limit))
    return 2 if limit is not None and largest is None else 0


def parse_size(text: str) -> int:
    """Bytes of a size such as 24GiB, 24G or 500 MB.

    Raises:
        ConfigError: no such size.
    """
    match = SIZE.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise _bad_flag("memory", "expected a size such as 24GiB or 80GB", text)
    return int(float(match[1]) * UNITS[(match[2] or "").upper()])


def _bad_flag(name: str, expected: str, value: object) -> ConfigError:
    return ConfigError([Problem((), f"{expected}, got {value}")], source=f"--{name.replace('_', '-')}")


def _clip(config: Any) -> dict[str, Any]:
    frames = config.sample_size // config.samples_per_frame
    return {"sample_size": config.sample_size, "sample_rate": config.sample_rate, "latent_frames": frames}


def _lines(plan: Plan, config: Any) -> list[str]:
    clip, memory = _clip(config), plan.memory
    total = sum(part.parameters for part in plan.parts)
    trainable = sum(part.trainable for part in plan.parts)
    turns = "" if len(plan.turns) == 1 else f" ({', '.join(f'{t.player} {_flops(t.flops)}' for t in plan.turns)})"
    kinds = ("weights", "average", "optimizer", "gradients", "activations")
    rows = [
        (
            "clip",
            f"{clip['sample_size']} samples, {clip['sample_size'] / clip['sample_rate']:.2f} s, {clip['latent_frames']} latent frames",
        ),
        ("parameters", f"{_count(total)}, {_count(trainable)} of them trained"),
        *((f"  {part.name}", _count(part.parameters) + ("" if part.trainable else ", frozen")) for part in plan.parts),
        ("batch", f"{plan.batch_size} in {plan.precision}"),
        ("train step", f"{_flops(plan.flops)}{turns}"),
        ("memory", f"{_bytes(memory.total)} at most, on each device"),
        *((f"  {kind}", _bytes(getattr(memory, kind))) for kind in kinds if getattr(memory, kind)),
        ("disk", f"{_bytes(plan.checkpoint)} a checkpoint, {_bytes(plan.export)} an export"),
        *(("not counted", f"the frozen network of {name}") for name in plan.uncounted),
    ]
    return [f"  {name:<15} {text}" for name, text in rows]


def _verdict(largest: Plan | None, limit: int) -> str:
    if largest is None:
        return f"  {_bytes(limit)} are too little for one clip: shorten sample_size, recompute activations, or use a lower precision"
    return f"  {_bytes(limit)} hold a batch of {largest.batch_size} at most, which takes {_bytes(largest.memory.total)}"


def _count(number: int) -> str:
    return _scaled(number, 1000, ("", "k", "M", "G"), "")


def _flops(number: int) -> str:
    return _scaled(number, 1000, ("", "k", "M", "G", "T", "P"), "FLOP")


def _bytes(number: int) -> str:
    return _scaled(number, 1024, ("", "Ki", "Mi", "Gi", "Ti"), "B")


def _scaled(number: float, base: int, prefixes: tuple[str, ...], unit: str) -> str:
    index = 0
    while number >= base and index < len(prefixes) - 1:
        number, index = number / base, index + 1
    return f"{number:.3g} {prefixes[index]}{unit}".strip() if number < 1000 else f"{number:.0f} {prefixes[index]}{unit}".strip()
