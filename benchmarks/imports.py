"""CPU time of importing every public name of the package, as a multiple of `import torch` (goal: at most 1.15).

Each measurement is a fresh interpreter; pairs run interleaved, A B B A, and the figure is the median of their ratios. A pair
before them warms the page cache and leaves compiled modules, as the first run of an installed package does.
    python benchmarks/imports.py [--pairs 9]
"""

import argparse
import os
import statistics
import subprocess
import sys

TORCH = "import torch"
PUBLIC = "import stable_audio_tools as s; [getattr(s, name) for name in s.__all__]"
GOAL = 1.15


def cpu_seconds(code: str) -> float:
    """User and system time of a Python process that runs `code`."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen([sys.executable, "-c", code], env=kept)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: python -c {code!r}")
    return usage.ru_utime + usage.ru_stime


def pair(swap: bool) -> tuple[float, float]:
    """Seconds of torch alone and of the package, measured one right after the other."""
    first, second = (PUBLIC, TORCH) if swap else (TORCH, PUBLIC)
    times = cpu_seconds(first), cpu_seconds(second)
    return times[::-1] if swap else times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    count = parser.parse_args().pairs
    pair(swap=False)
    pairs = [pair(swap=bool(index % 2)) for index in range(count)]
    ratios = sorted(package / torch for torch, package in pairs)
    torch, package = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"import torch {torch:.2f} s, every public name {package:.2f} s of CPU time")
    print(f"ratio {statistics.median(ratios):.3f} [{ratios[0]:.3f} to {ratios[-1]:.3f}], goal at most {GOAL}")


if __name__ == "__main__":
    main()
