"""How much faster a crop by seeking is than decoding the whole file, resampling all of it, and cropping (goal P1).

Both sides copy their crops into a batch, as a loader does, and end with the same samples, which is checked. Pairs run
interleaved, A B B A, one thread, files in the page cache; each side of a pair crops every file `--crops` times.
    python benchmarks/audio_crop.py [--files 4] [--file-seconds 120] [--crop-seconds 1.5] [--crops 1] [--pairs 5] [--kinds wav flac]
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from stable_audio_tools.audio.io import AudioInfo, probe, read_part
from stable_audio_tools.audio.resample import resample, resampled_length

Job = tuple[str, AudioInfo, int, int]
Side = Callable[[str, AudioInfo, int, int], torch.Tensor]
MODEL_RATE = 44100
KINDS = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "flac": {"format": "FLAC"},
    "mp3": {"format": "MP3"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}
GOALS = {"wav": 100, "flac": 20, "mp3": 20, "ogg": 20, "opus": 20}


def write(path: Path, seconds: float, rate: int, kind: dict[str, str], seed: int) -> None:
    """Noisy stereo with slow level changes, in blocks."""
    generator = np.random.default_rng(seed)
    with soundfile.SoundFile(path, "w", rate, 2, **kind) as file:
        for second in range(round(seconds)):
            t = second + np.arange(rate) / rate
            tone = 0.3 * np.sin(2 * np.pi * (220 + 5 * (second % 30)) * t)
            noise = 0.05 * generator.standard_normal((rate, 2)) * (1 + np.sin(t))[:, None]
            file.write((tone[:, None] + noise).astype(np.float32))


def whole_then_crop(path: str, info: AudioInfo, start: int, stop: int) -> torch.Tensor:
    frames, _ = soundfile.read(path, dtype="float32", always_2d=True)
    return resample(torch.from_numpy(frames.T), info.sample_rate, MODEL_RATE)[:, start:stop]


def by_seeking(path: str, info: AudioInfo, start: int, stop: int) -> torch.Tensor:
    return read_part(path, info, MODEL_RATE, start, stop)


def seconds_for(side: Side, jobs: list[Job], batch: torch.Tensor) -> float:
    begin = time.perf_counter()
    for row, job in zip(batch, jobs, strict=True):
        row.copy_(side(*job))
    return time.perf_counter() - begin


def compare(files: list[tuple[str, AudioInfo]], crop: int, pairs: int) -> tuple[list[float], float, float]:
    """Ratios of paired runs, and milliseconds an item of each side."""
    chooser, ratios, slow, fast = random.Random(0), [], [], []
    batches = torch.ones(2, len(files), 2, crop)  # memory that was touched
    for _ in range(pairs):
        jobs = []
        for path, info in files:
            start = chooser.randrange(resampled_length(info.frames, info.sample_rate, MODEL_RATE) - crop)
            jobs.append((path, info, start, start + crop))
        order = ((whole_then_crop, 0), (by_seeking, 1), (by_seeking, 1), (whole_then_crop, 0))
        runs = [seconds_for(side, jobs, batches[number]) for side, number in order]
        assert torch.equal(*batches), "the two sides differ"
        slow.append((runs[0] + runs[3]) / 2)
        fast.append((runs[1] + runs[2]) / 2)
        ratios.append(slow[-1] / fast[-1])
    return ratios, 1e3 * statistics.median(slow) / len(files), 1e3 * statistics.median(fast) / len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--file-seconds", type=float, default=120)
    parser.add_argument("--crop-seconds", type=float, default=1.5)
    parser.add_argument("--crops", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{args.crop_seconds} s out of {args.file_seconds:.0f} s at {MODEL_RATE} Hz, {args.file_seconds / args.crop_seconds:.0f}x shorter"
    )
    print(f"ms an item, ratio as median [min..max] of {args.pairs} pairs")
    with tempfile.TemporaryDirectory() as folder:
        for kind, options in ((kind, KINDS[kind]) for kind in args.kinds):
            for rate in (48000,) if kind == "opus" else (44100, 48000):
                paths = [Path(folder) / f"{number}-{rate}.{kind}" for number in range(args.files)]
                for number, path in enumerate(paths):
                    write(path, args.file_seconds, rate, options, number)
                files = [(str(path), probe(path)) for path in paths] * args.crops
                ratios, whole_ms, seek_ms = compare(files, round(args.crop_seconds * MODEL_RATE), args.pairs)
                goal = f"goal {GOALS[kind]}" if args.crop_seconds < 5 else ""
                print(
                    f"{kind:5} {rate} Hz  whole {whole_ms:7.1f}  seek {seek_ms:6.2f}  "
                    f"{statistics.median(ratios):6.1f}x [{min(ratios):.1f}..{max(ratios):.1f}]  {goal}",
                    flush=True,
                )
                for path in paths:
                    path.unlink()


if __name__ == "__main__":
    main()
