"""A training step of the DiT: counted operations, time, and the same against another implementation on the same weights.

    python benchmarks/dit_step.py [--peer FOLDER] [--conditioning prepend|adaLN] [--device cuda] [--width 256] [--depth 6] [--pairs 5]

A step is forward pass, mean squared error and backward pass; what an optimizer adds is the same for both. FOLDER holds the package
of stable-audio-tools 0.0.19 and what it imports, for example by `pip install --no-deps --target FOLDER stable-audio-tools==0.0.19
einops`. Its modules are loaded under another name, so that both run in one process: times are of interleaved pairs A, B, B, A, and
operations, recomputation included, are counted by torch. Each side runs with its defaults; `--recompute` changes ours.

Goals: at most 0.80 of the operations and at least 1.3 times as fast, with equal losses and gradients.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stable_audio_tools.models.denoisers.dit import DiffusionTransformer, DiTParams

IO_CHANNELS, COND_TOKENS, COND_DIM, GLOBAL_DIM = 64, 64, 128, 128
Step = Callable[[], Tensor]


def sizes(args: argparse.Namespace) -> dict[str, object]:
    """The network's config, which both sides read alike."""
    return {
        "io_channels": IO_CHANNELS,
        "embed_dim": args.width,
        "depth": args.depth,
        "num_heads": max(1, args.width // 64),
        "cond_token_dim": COND_DIM,
        "global_cond_dim": GLOBAL_DIM,
        "global_cond_type": args.conditioning,
    }


def peer_class(folder: Path) -> type[nn.Module]:
    """The peer's network, imported beside ours although the packages have one name."""
    package = types.ModuleType("peer_models")
    package.__path__ = [str(folder / "stable_audio_tools" / "models")]
    sys.modules["peer_models"] = package
    sys.path.append(str(folder))
    return importlib.import_module("peer_models.dit").DiffusionTransformer


def filled(model: nn.Module) -> nn.Module:
    """Weights drawn afresh: those a network starts with leave most gradients zero."""
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(model.named_parameters()):
        fan = parameter[0].numel() if parameter.ndim > 1 else 100
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * fan**-0.5)
    return model.train()


def make_step(model: nn.Module, global_name: str, args: argparse.Namespace) -> Step:
    """A function that takes one step on a fixed batch and gives the loss."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(args.batch, *shape, generator=generator).to(args.device)

    x, target, t = draw(IO_CHANNELS, args.tokens), draw(IO_CHANNELS, args.tokens), draw().sigmoid()
    conditions = {"cross_attn_cond": draw(COND_TOKENS, COND_DIM), global_name: draw(GLOBAL_DIM)}

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.bf16):
            loss = F.mse_loss(model(x, t, **conditions), target)
        loss.backward()
        return loss.detach()

    return step


def operations(step: Step) -> int:
    """Counted with attention as matrix products, since not every fused kernel is known to the counter."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def seconds(step: Step, device: str) -> float:
    start = time.perf_counter()
    step()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(ours: nn.Module, peer: nn.Module, steps: tuple[Step, Step], args: argparse.Namespace) -> None:
    """Prints agreement, then the ratios."""
    losses = [float(step()) for step in steps]
    other = dict(peer.named_parameters())
    worst = max(float((p.grad - other[name].grad).abs().max() / other[name].grad.abs().max()) for name, p in ours.named_parameters())
    print(f"agreement: losses {losses[0]:.7f} and {losses[1]:.7f}, gradients within {worst:.1e} of each tensor's largest")

    counted = [operations(step) for step in steps]
    print(f"operations of a step: ours {counted[0] / 1e9:.2f} G, peer {counted[1] / 1e9:.2f} G: {counted[0] / counted[1]:.3f}")

    pairs = []
    for _ in range(args.pairs):
        first, second, third, fourth = (seconds(steps[which], args.device) for which in (0, 1, 1, 0))
        pairs.append((first + fourth, second + third))
    ratios = [peer_s / ours_s for ours_s, peer_s in pairs]
    times = [1e3 * statistics.median(side) / 2 for side in zip(*pairs, strict=True)]
    print(f"time of a step: ours {times[0]:.0f} ms, peer {times[1]:.0f} ms")
    print(f"times as fast: {statistics.median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="folder with the other implementation; without it, our figures alone")
    parser.add_argument("--conditioning", choices=["prepend", "adaLN"], default="prepend")
    parser.add_argument("--recompute", choices=["none", "selective", "full"], default="none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    params = DiTParams.model_validate({**sizes(args), "activation_checkpointing": args.recompute})
    ours = filled(DiffusionTransformer(params)).to(args.device)
    step = make_step(ours, "global_cond", args)
    count = sum(p.numel() for p in ours.parameters())
    print(f"{count / 1e6:.1f} M parameters, {args.batch} x {args.tokens} tokens, {args.conditioning}, on {args.device}")
    if args.peer is None:
        loss, counted = float(step()), operations(step)
        took = statistics.median(seconds(step, args.device) for _ in range(2 * args.pairs))
        print(f"loss {loss:.7f}; {counted / 1e9:.2f} G operations, {1e3 * took:.0f} ms a step")
        return
    peer = filled(peer_class(args.peer)(**sizes(args))).to(args.device)
    compare(ours, peer, (step, make_step(peer, "global_embed", args)), args)


if __name__ == "__main__":
    main()
