"""The stereo multi-resolution STFT loss against the same formula evaluated signal by signal.

    python benchmarks/mrstft.py [--peer FOLDER] [--device cuda] [--batch 4] [--samples 65536] [--pairs 5]

With FOLDER (see `dit_step.py`), the peer's own loss runs in another process, and pairs alternate between the two. Without it, ours is
compared with the direct form: it filters and transforms left, right, sum and difference one by one at each resolution, original and
reconstruction alike, with a graph for both, as loss libraries do. Prints the value and gradient agreement in float64, then the median
ratio of forward plus backward times over interleaved pairs; times on a CPU are those of the process.

Goal: at least 8 times as fast as the peer on one thread, the float64 value equal to 1e-10.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path

import torch
from peer_training import Loss, PeerProcess, ratio, seconds, value_and_gradient
from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.nn.filters import a_weighting_fir
from stable_audio_tools.nn.reconstruction import MultiResolutionSTFT, SpectralParams

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


def build(device: str, dtype: torch.dtype, taps: Tensor | None = None) -> tuple[Loss, Loss]:
    """The direct form and ours, with another filter's `taps` where given."""
    torch.set_default_dtype(dtype)
    ours = MultiResolutionSTFT(PARAMS, SAMPLE_RATE).to(device)
    torch.set_default_dtype(torch.float32)
    ours.fir = taps = (a_weighting_fir(SAMPLE_RATE) if taps is None else taps).to(device, dtype)

    def shared(target: Tensor, estimate: Tensor) -> Tensor:
        terms = ours(target, estimate)
        return terms["mrstft"] + (terms["stft_left"] + terms["stft_right"]) / 2

    return lambda target, estimate: direct(target, estimate, taps), shared


def agreement(direct_loss: Loss, our_loss: Loss, target: Tensor, estimate: Tensor) -> str:
    """Relative differences of the values and of the gradients."""
    (value, gradient), (ours, our_gradient) = (value_and_gradient(loss, target, estimate) for loss in (direct_loss, our_loss))
    return differences(value, gradient, ours, our_gradient)


def differences(value: Tensor, gradient: Tensor, ours: Tensor, our_gradient: Tensor) -> str:
    relative = float((ours - value).abs() / value), float((our_gradient - gradient).norm() / gradient.norm())
    return f"float64 agreement: value {relative[0]:.1e}, gradient {relative[1]:.1e} (relative)"


def against_peer(args: argparse.Namespace, small: list[Tensor], large: list[Tensor]) -> None:
    params = {"fft_sizes": SIZES, "hop_sizes": PARAMS.hop_sizes, "win_lengths": SIZES, "perceptual_weighting": True}
    with tempfile.TemporaryDirectory() as name:
        given = {"params": params, "sample_rate": SAMPLE_RATE, "small": small, "large": large}
        torch.save(given, Path(name) / "given.pt")
        with PeerProcess(args.peer, Path(name), "mrstft") as peer:
            theirs = peer.recorded("agreement")
            taps = a_weighting_fir(SAMPLE_RATE)
            print(f"taps of the filter, which the peer rounds to float32: {float((theirs['taps'] - taps).abs().max()):.1e} apart")
            exact = build("cpu", torch.float64, theirs["taps"])[1]
            print(differences(theirs["value"], theirs["gradient"], *value_and_gradient(exact, *small)))
            ours = build("cpu", torch.float32)[1]
            peer.ask("step"), seconds(ours, *large)  # warm-up
            report("peer", *ratio(lambda: float(peer.ask("step")), lambda: seconds(ours, *large), args.pairs), large[0])


def report(whom: str, times: str, faster: str, audio: Tensor) -> None:
    print(f"forward + backward, {' x '.join(map(str, audio.shape))}: {whom} {times} here")
    print(faster)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="folder with the other implementation; without it, the direct form")
    parser.add_argument("--device", default="cpu", help="of the direct form")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--samples", type=int, default=65536)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    generator = torch.Generator().manual_seed(0)
    small = [0.1 * torch.randn(2, 2, 8192, generator=generator, dtype=torch.float64).to(args.device) for _ in range(2)]
    large = [0.1 * torch.randn(args.batch, 2, args.samples, device=args.device) for _ in range(2)]
    if args.peer is not None:
        against_peer(args, small, large)
        return
    print(agreement(*build(args.device, torch.float64), *small))
    losses = build(args.device, torch.float32)
    direct_run, our_run = (functools.partial(seconds, loss, *large) for loss in losses)
    direct_run(), our_run()  # warm-up
    report("direct form", *ratio(direct_run, our_run, args.pairs), large[0])


if __name__ == "__main__":
    main()
