"""The peer's losses and training steps, in a process of their own as a script; and what both processes measure in the same way.

A `PeerProcess` is started by a benchmark and answers one line for each line it is told: what it is asked, it computes from the files of
a folder that both see.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

Loss = Callable[[Tensor, Tensor], Tensor]
Shape = Sequence[int]


class PeerProcess:
    """The peer beside this process, so that steps of both can be timed in turn.

    Args:
        peer: the folder that holds the package and what it imports.
        folder: what both exchange lies here.
        job: `mrstft` or `gan`.
    """

    def __init__(self, peer: Path, folder: Path, job: str):
        self.folder = folder
        path = os.pathsep.join([str(peer.resolve()), str(Path(__file__).resolve().parent)])
        command = [sys.executable, __file__, str(folder), job, str(torch.get_num_threads())]
        environment = {**os.environ, "PYTHONPATH": path, "WANDB_MODE": "disabled"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder, env=environment
        )

    def ask(self, what: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(what, file=self.process.stdin, flush=True)
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"the peer ended at '{what}' with status {self.process.wait()}")
        return answer.strip()

    def recorded(self, what: str) -> dict[str, Any]:
        """What the peer wrote when asked for it."""
        self.ask(what)
        return torch.load(self.folder / f"{what}.pt")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# ---- measured alike on both sides ----


def value_and_gradient(loss: Loss, target: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    estimate = estimate.detach().requires_grad_()
    value = loss(target, estimate)
    value.backward()
    return value.detach(), estimate.grad


def seconds(loss: Loss, target: Tensor, estimate: Tensor) -> float:
    """Of forward and backward: this process's on a CPU, which other work stretches less, the clock's on a GPU."""
    clock = time.perf_counter if target.is_cuda else time.process_time
    start = clock()
    value_and_gradient(loss, target, estimate)
    if target.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def ratio(first: Callable[[], float], second: Callable[[], float], pairs: int) -> tuple[str, str]:
    """Median seconds of each, and how many times as fast the second is, of pairs A, B, B, A that a drifting machine favours neither in."""
    measured = []
    for _ in range(pairs):
        a, b, c, d = (run() for run in (first, second, second, first))
        measured.append((a + d, b + c))
    ratios = [a / b for a, b in measured]
    times = [1e3 * statistics.median(side) / 2 for side in zip(*measured, strict=True)]
    return (
        f"{times[0]:.0f} ms against {times[1]:.0f} ms",
        f"{statistics.median(ratios):.1f} times as fast [{min(ratios):.1f} to {max(ratios):.1f}]",
    )


class Operations(FlopCounterMode):
    """torch's counter with Fourier transforms, 5/2 N log2 N for a real one of length N and twice that for a complex one."""

    def __init__(self) -> None:
        aten = torch.ops.aten
        transforms = {aten._fft_r2c: _real_transform, aten._fft_c2r: _real_inverse, aten._fft_c2c: _complex_transform}
        super().__init__(display=False, custom_mapping=transforms)


def _real_transform(shape: Shape, dim: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return _transform(shape, math.prod(shape[d] for d in dim)) // 2


def _real_inverse(shape: Shape, dim: Sequence[int], normalization: int, length: int, **kwargs: Any) -> int:
    return _transform([*shape[:-1], length], length) // 2


def _complex_transform(shape: Shape, dim: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return _transform(shape, math.prod(shape[d] for d in dim))


def _transform(shape: Shape, length: int) -> int:
    return int(math.prod(shape) * 5 * math.log2(length)) if length > 1 else 0


def take_turns(pl: ModuleType, module: nn.Module, audio: Tensor) -> list[dict[str, Any]]:
    """What an autoencoder's turn and a discriminator's cost, and their gradients, in a real Trainer and the precision of the audio.

    Args:
        pl: the Lightning package that `module` is made for.
        audio: (B, C, T), the batch of both turns.
    """

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: nn.Module, batch: Any, batch_idx: int) -> None:
            torch.manual_seed(batch_idx)  # the bottleneck draws noise
            self.before = operations.get_total_flops()

        def on_before_optimizer_step(self, trainer: Any, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
            gradients = {
                n.removeprefix("strategy."): p.grad.clone() for n, p in module.named_parameters() if id(p) in moved and p.grad is not None
            }
            turns.append({"gradients": gradients})

        def on_train_batch_end(self, *args: Any) -> None:
            turns[-1]["operations"] = operations.get_total_flops() - self.before

    turns: list[dict[str, Any]] = []
    precision = "64-true" if audio.dtype == torch.float64 else "32-true"
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_steps=2, accelerator="cpu", precision=precision, callbacks=[Watch()], **quiet)
    with Operations() as operations:
        trainer.fit(module, DataLoader([(audio, [{} for _ in audio])] * 2, batch_size=None))
    return turns


# ---- the peer's process ----


def peers_spectral_loss(dtype: torch.dtype, params: dict[str, Any], sample_rate: int) -> tuple[Loss, Tensor]:
    """The terms of stereo autoencoder training, and the taps of their filter. Original and reconstruction are in their places."""
    from stable_audio_tools.training.losses import auraloss

    torch.set_default_dtype(dtype)  # windows are no buffers
    pair = auraloss.SumAndDifferenceSTFTLoss(sample_rate=sample_rate, **params).to(dtype)
    single = auraloss.MultiResolutionSTFTLoss(sample_rate=sample_rate, **params).to(dtype)
    torch.set_default_dtype(torch.float32)

    def loss(target: Tensor, estimate: Tensor) -> Tensor:
        left, right = (single(estimate[:, c : c + 1], target[:, c : c + 1]) for c in (0, 1))
        return pair(estimate, target) + (left + right) / 2

    return loss, single.stft_losses[0].prefilter.fir.weight.detach().flatten()


def serve_spectral_loss(folder: Path) -> None:
    given = torch.load(folder / "given.pt")
    small = [x.double() for x in given["small"]]
    loss, taps = peers_spectral_loss(torch.float64, given["params"], given["sample_rate"])
    value, gradient = value_and_gradient(loss, *small)
    torch.save({"value": value, "gradient": gradient, "taps": taps}, folder / "agreement.pt")
    single, _ = peers_spectral_loss(torch.float32, given["params"], given["sample_rate"])
    for line in sys.stdin:
        answer(seconds(single, *given["large"]) if line.strip() == "step" else "ready")


def serve_turns(folder: Path) -> None:
    import pytorch_lightning as pl
    from peer_models import draw_weights

    from stable_audio_tools.models import create_model_from_config
    from stable_audio_tools.training import create_training_wrapper_from_config
    from stable_audio_tools.training.losses import losses

    # Spectral convergence relative to the original, as its authors define it; the peer exchanges the two. As much work either way.
    losses.AuralossLoss.forward = losses.LossWithTarget.forward
    config, audio = json.loads((folder / "config.json").read_text()), torch.load(folder / "audio.pt")
    torch.set_default_dtype(audio.dtype)
    module = create_training_wrapper_from_config(config, create_model_from_config(config))
    draw_weights(module.autoencoder, 0)
    draw_weights(module.discriminator, 1)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    turns = take_turns(pl, module, audio)
    torch.save({"state": state, "turns": turns}, folder / "turns.pt")
    for _ in sys.stdin:
        answer("ready")


def answer(what: object) -> None:
    print(what, file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    from peer_models import stand_in

    stand_in()
    sys.stdout = sys.stderr  # what the peer prints is no answer
    torch.set_num_threads(int(sys.argv[3]))
    {"mrstft": serve_spectral_loss, "gan": serve_turns}[sys.argv[2]](Path(sys.argv[1]))
