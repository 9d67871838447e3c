"""Generation: clips in one call against one call each, and the memory that decoding takes by its length.

    python benchmarks/generation.py batch [--model FOLDER or CONFIG] [--clips 8] [--steps 8] [--cfg-scale 6] [--pairs 5]
    python benchmarks/generation.py memory [--config model_configs/autoencoder/stable_audio_2_0_vae.json] [--divide 8] [--seconds 30 180]

`batch` makes the clips both ways in interleaved pairs, checks that they are the same clips, and counts the network's calls: guidance is
one call a step of both halves, and a scale of 1 has no second half. `memory` decodes latents of each length in a process of its own,
whose peak resident memory is read from the kernel, before and after; `--whole` decodes in one pass, for comparison.

Goals: 8 clips in one call at least 1.3 times as fast on 2 cores; the peak of 180 s at most 1.3 times that of 30 s.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools import create_model_from_config, get_pretrained_model
from stable_audio_tools.inference.generation import generate_diffusion_cond

CONFIGS = Path(__file__).parents[1] / "model_configs"
RATE = 44100  # of the memory benchmark, in Hz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    batch = commands.add_parser("batch")
    batch.add_argument("--model", default=str(CONFIGS / "text_to_audio" / "stable_audio_open_small_nano.json"))
    for name, default in {"clips": 8, "steps": 8, "pairs": 5}.items():
        batch.add_argument(f"--{name}", type=int, default=default)
    batch.add_argument("--cfg-scale", type=float, default=6.0)
    batch.set_defaults(run=run_batch)
    memory = commands.add_parser("memory")
    memory.add_argument("--config", default=str(CONFIGS / "autoencoder" / "stable_audio_2_0_vae.json"))
    memory.add_argument("--divide", type=int, default=8, help="channels by this, so that a CPU decodes in seconds")
    memory.add_argument("--seconds", type=float, nargs="+", default=[30.0, 180.0])
    memory.add_argument("--whole", action="store_true")
    memory.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    memory.set_defaults(run=run_memory)
    args = parser.parse_args()
    args.run(args)


# clips together and alone


def run_batch(args: argparse.Namespace) -> None:
    model, size = load(args.model)
    metadata = [{"prompt": f"a bell, number {index}", "seconds_start": 0, "seconds_total": 1} for index in range(args.clips)]
    calls = Calls(model.model)

    def clips(chosen: slice) -> Tensor:
        return generate_diffusion_cond(
            model, args.steps, args.cfg_scale, conditioning=metadata[chosen], sample_size=size, seed=list(range(args.clips))[chosen]
        )

    def together() -> Tensor:
        return clips(slice(None))

    def alone() -> Tensor:
        return torch.cat([clips(slice(index, index + 1)) for index in range(args.clips)])

    together(), alone()
    seconds: dict[Any, list[float]] = {together: [], alone: []}
    for pair in range(args.pairs):
        made = {}
        for way in (together, alone) if pair % 2 == 0 else (alone, together):
            start = time.perf_counter()
            made[way] = way()
            seconds[way].append(time.perf_counter() - start)
        difference = float((made[together] - made[alone]).square().mean().sqrt() / made[alone].square().mean().sqrt())
        if difference > 1e-2:  # rounding, which Griffin-Lim makes much of
            raise SystemExit(f"the clips differ by {difference:.1e}")
    ratios = sorted(b / a for a, b in zip(seconds[together], seconds[alone], strict=True))
    for way in (together, alone):
        calls.rows = []
        way()
        print(f"{way.__name__:>9}: {statistics.median(seconds[way]):.3f} s, {len(calls.rows)} calls of {calls.rows[0]} items")
    median = statistics.median(ratios)
    print(f"{torch.get_num_threads()} threads, {args.clips} clips, {args.steps} steps, guidance {args.cfg_scale:g}: together ", end="")
    print(f"{median:.2f} times as fast [{ratios[0]:.2f} to {ratios[-1]:.2f}]; the same clips within {difference:.1e}")


class Calls:
    """How many items each call of a network has."""

    def __init__(self, network: torch.nn.Module):
        self.rows: list[int] = []
        network.register_forward_pre_hook(lambda module, given: self.rows.append(len(given[0])))


def load(name: str) -> tuple[Any, int]:
    """A model of a folder, or with random weights of a config, and its sample size."""
    if not name.endswith(".json"):
        model, config = get_pretrained_model(name)
        return model, config["sample_size"]
    config = json.loads(Path(name).read_text())
    torch.manual_seed(0)
    return create_model_from_config(config).eval(), config["sample_size"]


# memory by length


def run_memory(args: argparse.Namespace) -> None:
    if args.child:
        print(json.dumps(decoded(args)))
        return
    rows = []
    for seconds in args.seconds:
        command = [sys.executable, __file__, "memory", "--child", "--config", args.config, "--divide", str(args.divide)]
        command += ["--seconds", str(seconds)] + (["--whole"] if args.whole else [])
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        before, peak, took = (rows[-1][key] for key in ("before", "peak", "took"))
        print(f"{seconds:g} s: peak {peak:.0f} MiB, {peak - before:.0f} MiB of it by decoding, {took:.1f} s")
    first, last = rows[0], rows[-1]
    ratio, own = last["peak"] / first["peak"], (last["peak"] - last["before"]) / (first["peak"] - first["before"])
    print(f"{args.seconds[-1]:g} s against {args.seconds[0]:g} s: {ratio:.2f} times the peak, {own:.2f} times what decoding adds")


def decoded(args: argparse.Namespace) -> dict[str, float]:
    """MiB resident before decoding and at the peak, and seconds."""
    from stable_audio_tools.inference.reconstruction import decode

    config = json.loads(Path(args.config).read_text())
    for side in ("encoder", "decoder"):
        config["model"][side]["config"]["channels"] //= args.divide
    torch.manual_seed(0)
    model = create_model_from_config({**config, "sample_rate": RATE}).eval()
    frames = round(args.seconds[0] * RATE / model.downsampling_ratio)
    latents = torch.randn(1, model.latent_dim, frames)
    before, start = peak(), time.perf_counter()
    audio = decode(model, latents, seed=0, chunk_s=1e9 if args.whole else None)
    assert audio.isfinite().all()
    return {"before": before, "peak": peak(), "took": time.perf_counter() - start}


def peak() -> float:
    """The most that the process has had in memory, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
