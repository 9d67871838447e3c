"""The stereo multi-resolution STFT loss against the same formula evaluated signal by signal.

    python benchmarks/mrstft.py [--device cuda] [--batch 4] [--samples 65536] [--pairs 5]

The direct form filters and transforms left, right, sum and difference one by one at each resolution, original and reconstruction
alike, with a graph for both, as loss libraries do. Prints the value and gradient agreement in float64, then the median ratio of
forward plus backward times over interleaved pairs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.training.losses.filters import a_weighting_fir
from stable_audio_tools.training.losses.reconstruction import MultiResolutionSTFT, SpectralParams

SAMPLE_RATE = 44100
SIZES = (2048, 1024, 512, 256, 128, 64, 32)
PARAMS = SpectralParams(fft_sizes=SIZES, hop_sizes=tuple(size // 4 for size in SIZES), win_lengths=SIZES, perceptual_weighting=True)


def direct(target: Tensor, estimate: Tensor, taps: Tensor) -> Tensor:
    """Sum and difference, plus half of left and right."""
    pairs = [(x[:, :1] + x[:, 1:], x[:, :1] - x[:, 1:], x[:, :1], x[:, 1:]) for x in (target, estimate)]
    losses = [sum(at_resolution(a, b, taps, size) for size in SIZES) / len(SIZES) for a, b in zip(*pairs, strict=True)]
    return (losses[0] + losses[1]) / 2 + (losses[2] + losses[3]) / 2


def at_resolution(target: Tensor, estimate: Tensor, taps: Tensor, size: int) -> Tensor:
    wanted, given = (magnitude(x, taps, size) for x in (target, estimate))
    convergence = (wanted - given).norm(dim=(-2, -1)) / wanted.norm(dim=(-2, -1))
    return convergence.mean() + F.l1_loss(given.log(), wanted.log())


def magnitude(x: Tensor, taps: Tensor, size: int) -> Tensor:
    filtered = F.conv1d(x, taps[None, None], padding=len(taps) // 2)[:, 0]
    window = torch.hann_window(size, dtype=x.dtype, device=x.device)
    spectrum = torch.stft(filtered, size, size // 4, size, window, return_complex=True)
    return (spectrum.real**2 + spectrum.imag**2).clamp(min=1e-8).sqrt()


def build(device: str, dtype: torch.dtype) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    torch.set_default_dtype(dtype)
    ours = MultiResolutionSTFT(PARAMS, SAMPLE_RATE).to(device)
    taps = a_weighting_fir(SAMPLE_RATE).to(device, dtype)
    torch.set_default_dtype(torch.float32)

    def shared(target: Tensor, estimate: Tensor) -> Tensor:
        terms = ours(target, estimate)
        return terms["mrstft"] + (terms["stft_left"] + terms["stft_right"]) / 2

    return lambda target, estimate: direct(target, estimate, taps), shared


def value_and_gradient(loss: Callable[[Tensor, Tensor], Tensor], target: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    estimate = estimate.detach().requires_grad_()
    value = loss(target, estimate)
    value.backward()
    return value.detach(), estimate.grad


def agreement(device: str) -> tuple[float, float]:
    """Relative difference of the values and of the gradients in float64."""
    generator = torch.Generator().manual_seed(0)
    target, estimate = (0.1 * torch.randn(2, 2, 8192, generator=generator, dtype=torch.float64).to(device) for _ in range(2))
    (value, gradient), (ours, our_gradient) = (value_and_gradient(loss, target, estimate) for loss in build(device, torch.float64))
    return float((ours - value).abs() / value), float((our_gradient - gradient).norm() / gradient.norm())


def seconds(loss: Callable[[Tensor, Tensor], Tensor], target: Tensor, estimate: Tensor) -> float:
    start = time.perf_counter()
    value_and_gradient(loss, target, estimate)
    if target.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--samples", type=int, default=65536)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    value, gradient = agreement(args.device)
    print(f"float64 agreement: value {value:.1e}, gradient {gradient:.1e} (relative)")

    target, estimate = (0.1 * torch.randn(args.batch, 2, args.samples, device=args.device) for _ in range(2))
    losses = build(args.device, torch.float32)
    for loss in losses:  # warm-up
        seconds(loss, target, estimate)
    pairs = []
    for _ in range(args.pairs):  # A, B, B, A, so that a drifting machine favours neither
        first, second, third, fourth = (seconds(losses[which], target, estimate) for which in (0, 1, 1, 0))
        pairs.append((first + fourth, second + third))
    ratios = [direct_s / ours_s for direct_s, ours_s in pairs]
    times = [1e3 * statistics.median(side) / 2 for side in zip(*pairs, strict=True)]
    print(f"forward + backward, {args.batch} x 2 x {args.samples}: direct {times[0]:.0f} ms, ours {times[1]:.0f} ms")
    print(f"ratio {statistics.median(ratios):.1f} [{min(ratios):.1f}..{max(ratios):.1f}]")


if __name__ == "__main__":
    main()
