"""How long it takes from a folder of very many tiny files to the first batch, cold and with the cache, and what it takes in memory.

Each figure is of a process of its own. Memory is what the workers have beyond those of a folder with 100 files: private pages, and
their share of what they have in common.
    python benchmarks/scan.py [--files 100000] [--workers 2] [--start fork|spawn] [--folder FOLDER]
"""

import argparse
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RATE, FRAMES = 8000, 2000
BATCH = 16
STARTS = ("fork", "spawn")


def fill(folder: Path, count: int) -> None:
    """WAV files of a quarter of a second, 1000 to a subfolder, each with a caption beside it."""
    noise = (np.random.default_rng(0).standard_normal(2 * FRAMES) * 3000).astype("<i2")
    for number in range(count):
        place = folder / f"{number // 1000:03d}"
        if number % 1000 == 0:
            place.mkdir(parents=True)
        data = noise[number % FRAMES :][: FRAMES - number % 400].tobytes()
        header = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16) + b"data" + struct.pack("<I", len(data))
        (place / f"{number:06d}.wav").write_bytes(b"RIFF" + struct.pack("<I", len(header) + len(data)) + header + data)
        (place / f"{number:06d}.txt").write_text(f"sound number {number}")


def proportional_mib(pid: int) -> float:
    """Memory of a process, what it shares counted by its share."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def one_run(folder: str, workers: int, start: str, epochs_batches: int) -> None:
    """Time to the first batch, then the memory of the workers after some thousand batches."""
    import torch

    from stable_audio_tools.data.dataset import create_dataloader_from_config

    torch.multiprocessing.set_start_method(start)
    config = {"dataset_type": "audio_dir", "datasets": [{"id": "x", "path": folder}]}
    begun = (time.perf_counter(), time.process_time())
    loader = create_dataloader_from_config(config, BATCH, FRAMES, RATE, audio_channels=1, num_workers=workers)
    scanned = time.perf_counter() - begun[0]
    batches = iter(loader)
    next(batches)
    first, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
    for _ in range(epochs_batches):
        if next(batches, None) is None:
            break
    pids = [worker.pid for worker in loader._torch_loader._iterator._workers]
    memory = [proportional_mib(pid) for pid in pids]
    print(
        json.dumps(
            {"scan_s": scanned, "first_batch_s": first, "cpu_s": cpu, "worker_mib": max(memory), "main_mib": proportional_mib(os.getpid())}
        )
    )
    loader.close()


def measured(folder: Path, workers: int, start: str, batches: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--folder", str(folder), "--workers", str(workers), "--start", start, "--one", str(batches)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def forget(folder: Path) -> None:
    from stable_audio_tools.data.scan_cache import NAME

    (folder / NAME).unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--start", choices=STARTS)
    parser.add_argument("--folder", type=Path, help="where the files are, or are made and left")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        one_run(str(args.folder), args.workers, args.start, args.one)
        return
    with tempfile.TemporaryDirectory() as scratch:
        few, many = Path(scratch, "few"), args.folder or Path(scratch, "many")
        fill(few, 100)
        if not many.exists():
            fill(many, args.files)
        for start in [args.start] if args.start else STARTS:
            forget(many)
            little = measured(few, args.workers, start, 1000)
            for what in ("cold", "cached"):
                run = measured(many, args.workers, start, 3000)
                times = f"{run['first_batch_s']:.1f} s (looking over {run['scan_s']:.1f} s; {run['cpu_s']:.1f} s of processor)"
                memory = {name: run[f"{name}_mib"] - little[f"{name}_mib"] for name in ("worker", "main")}
                print(
                    f"{start}, {what}: first batch after {times}; each worker {memory['worker']:+.0f} MiB over {little['worker_mib']:.0f},"
                    f" main process {memory['main']:+.0f} MiB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
