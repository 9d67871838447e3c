"""What it costs to bring clips from worker processes to the training process (goal P2), and what batches of similar length save (P6).

Transfer: clips that are there at once, through our loader, and as tuples of metadata dicts that hold a float mask of every
sample, which is how upstream's loader sends them. Lengths: a training step of a small DiT on clips of 2 to 47 s, padded to
47 s and in batches of similar length. Pairs run interleaved, A B B A.
    python benchmarks/loader.py [transfer|lengths] [--pairs 5] [--batches 24]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from stable_audio_tools.data.buckets import LengthGrid
from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.data.types import Sample
from stable_audio_tools.models import create_model_from_config

FRAMES_A_SECOND = 44100 / 2048
SHORTEST_S, LONGEST_S = 2.0, 47.0
DIT = {
    "model_type": "diffusion_uncond",
    "sample_rate": 44100,
    "sample_size": 1024,
    "audio_channels": 2,
    "model": {
        "type": "dit",
        "config": {"in_channels": 64, "embed_dim": 128, "depth": 4, "num_heads": 4},
    },
}


class Clips(Dataset[Any]):
    """The same stereo clip, again and again, of `size` samples; the last quarter is padding."""

    def __init__(self, size: int, count: int):
        self.clip, self.size, self.count = torch.randn(2, size), size, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.clip, {"path": f"{index}.wav", "seconds_start": 0, "seconds_total": 47}, self.size * 3 // 4)


class MaskedClips(Clips):
    def __getitem__(self, index: int) -> Any:
        audio, metadata, valid = super().__getitem__(index)[:3]
        mask = torch.zeros(self.size)
        mask[:valid] = 1
        return audio, {**metadata, "padding_mask": mask}


def stacked(items: list[Any]) -> Any:
    return torch.stack([audio for audio, _ in items]), tuple(metadata for _, metadata in items)


def seconds_for(batches: Iterator[Any]) -> float:
    next(batches)  # workers have started
    begin = time.perf_counter()
    for audio, metadata in batches:
        assert len(audio) == len(metadata)
    return time.perf_counter() - begin


def paired(slow: Callable[[], float], fast: Callable[[], float], pairs: int) -> tuple[list[float], float, float]:
    """Ratios, and the median of each side."""
    runs = [(slow(), fast(), fast(), slow()) for _ in range(pairs)]
    ratios = [(a + d) / (b + c) for a, b, c, d in runs]
    return ratios, statistics.median(r[0] for r in runs), statistics.median(r[1] for r in runs)


def said(what: str, ratios: list[float], slow_ms: float, fast_ms: float) -> None:
    spread = f"[{min(ratios):.2f}..{max(ratios):.2f}]"
    print(f"{what}: {slow_ms:.1f} against {fast_ms:.1f} ms a batch, {statistics.median(ratios):.2f}x {spread}", flush=True)


def transfer(pairs: int, batches: int) -> None:
    for size, batch in ((65536, 16), (2_097_152, 4)):
        count = batch * (batches + 1)
        ours = AudioLoader(Clips(size, count), batch, num_workers=2)
        options = {"num_workers": 2, "persistent_workers": True, "drop_last": True, "collate_fn": stacked, "shuffle": True}
        theirs: DataLoader[Any] = DataLoader(MaskedClips(size, count), batch, **options)
        sides = [lambda loader=loader: seconds_for(iter(loader)) for loader in (theirs, ours)]
        for side in sides:
            side()
        ratios, slow, fast = paired(*sides, pairs)
        said(f"{batch} clips of {size} samples", ratios, 1e3 * slow / batches, 1e3 * fast / batches)
        ours.close()


class Latents(Dataset[Any]):
    """Latents of clips whose lengths are uniform between 2 and 47 s, padded to the longest if `padded`."""

    def __init__(self, count: int, *, padded: bool):
        seconds = SHORTEST_S + (LONGEST_S - SHORTEST_S) * torch.rand(count, generator=torch.Generator().manual_seed(0))
        self.sizes, self.padded = (seconds * FRAMES_A_SECOND).ceil().long(), padded
        self.lengths = None if padded else self.sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Sample:
        size = int(self.sizes[index])
        latents = torch.randn(64, size, generator=torch.Generator().manual_seed(index))
        longest = round(LONGEST_S * FRAMES_A_SECOND)
        return Sample(F.pad(latents, (0, longest - size)) if self.padded else latents, {}, size)


def lengths(pairs: int, batches: int) -> None:
    torch.manual_seed(0)
    model = create_model_from_config(DIT).train()
    sides, useful = [], []
    for padded in (True, False):
        loader = AudioLoader(Latents(4 * batches, padded=padded), 4, seed=0, grid=LengthGrid())
        made = [(latents, torch.stack([item["padding_mask"] for item in metadata])) for latents, metadata in loader]
        useful.append(sum(int(mask.sum()) for _, mask in made))
        tokens = sum(mask.numel() for _, mask in made)
        print(f"{'padded to 47 s' if padded else 'similar lengths'}: {useful[-1]} of {tokens} frames hold audio, {useful[-1] / tokens:.3f}")
        sides.append(lambda made=made: sum(step(model, *batch) for batch in made))
    assert useful[0] == useful[1], "both sides train on the same clips"
    ratios, slow, fast = paired(*sides, pairs)
    said("useful frames a second, DiT of 4 layers of 128", ratios, 1e3 * slow / batches, 1e3 * fast / batches)


def step(model: torch.nn.Module, latents: torch.Tensor, mask: torch.Tensor) -> float:
    begin = time.perf_counter()
    output = model(latents, torch.full((len(latents),), 0.5))
    loss = ((output - latents).square().mean(1) * mask).sum() / mask.sum()
    loss.backward()
    model.zero_grad()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("transfer", "lengths"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batches", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, bench in (("transfer", transfer), ("lengths", lengths)):
        if args.what in (None, name):
            bench(args.pairs, args.batches)


if __name__ == "__main__":
    main()
