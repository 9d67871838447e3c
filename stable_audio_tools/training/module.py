"""The Lightning host of every training: one manual loop, one step counter, EMA after the step, logging, export.

What loss is taken is the strategy's business, what the batch becomes is `prepare`'s. `train_step` counts batches that
the optimizers see: accumulated micro-batches are one step, and so is a batch on which several players move. Lightning's
`global_step` counts optimizer calls; nothing here uses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from ema_pytorch import EMA
from torch import Tensor, nn

from stable_audio_tools.diffusion.seeds import derive_seed
from stable_audio_tools.training.meter import MetricMeter
from stable_audio_tools.training.optim import OptimizerGroup
from stable_audio_tools.training.rng import restore_rng, rng_state
from stable_audio_tools.training.strategies.base import TrainingStrategy, Update

CHECKPOINT_KEY = "stable_audio_tools"


class TrainingModule(pl.LightningModule):
    """Host of a model and a strategy.

    Args:
        strategy: says what loss is taken.
        optimizers: optimizer and scheduler config by player.
        model_config: the whole run config as JSON; it goes into checkpoints and exports.
        clip_grad_norm: largest gradient norm of a player; 0 leaves gradients alone.
    """

    def __init__(
        self,
        strategy: TrainingStrategy,
        optimizers: Mapping[str, OptimizerGroup],
        model_config: dict[str, Any],
        *,
        clip_grad_norm: float = 0.0,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.strategy = strategy
        self.optimizer_groups = dict(optimizers)
        self.model_config = model_config
        self.clip_grad_norm = clip_grad_norm
        self.accumulate_batches = 1
        self.log_every_n_steps = 10
        self.train_step = 0
        self.interrupted = False  # asked to end at once
        self.meter = MetricMeter()
        self._micro_batch = 0

    # what a kind of training fills in

    @property
    def model(self) -> nn.Module:
        """The model in training."""
        raise NotImplementedError

    @property
    def sampling_model(self) -> nn.Module:
        """The model that demos, validation and exports use: EMA weights where there are any."""
        raise NotImplementedError

    def prepare(self, batch: Any) -> Any:
        """What the strategy gets for a batch of the data loader."""
        raise NotImplementedError

    def averages(self) -> Mapping[str, tuple[EMA, str]]:
        """Name to (EMA, the player whose step it follows)."""
        return {}

    # the loop

    def setup(self, stage: str) -> None:
        seed = torch.initial_seed()
        if stage == "fit" and self.global_rank:  # only now Lightning knows it; every rank draws its own noise
            torch.manual_seed(derive_seed(seed, self.global_rank))
        self.strategy.start(seed=seed, rank=self.global_rank)

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        self.players = self.strategy.players(self.model)
        built = {name: self.optimizer_groups[name].build(parameters) for name, parameters in self.players.items()}
        self._player_order = list(built)
        self._schedulers = {name: scheduler for name, (_, scheduler) in built.items() if scheduler is not None}
        return [optimizer for optimizer, _ in built.values()], list(self._schedulers.values())

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One micro-batch: let the strategy compute losses, step after the last micro-batch of a train step."""
        last = (self._micro_batch + 1) % self.accumulate_batches == 0
        for update in self.strategy.updates(self.model, self.prepare(batch), self.train_step):
            self._backward(update)
            if last:
                self._optimizer_step(update.player)
        self._micro_batch = (self._micro_batch + 1) % self.accumulate_batches
        if last:
            self._finish_step()

    def _backward(self, update: Update) -> None:
        self.meter.add(update.output.logs)
        self.manual_backward(update.output.loss / self.accumulate_batches)

    def _optimizer_step(self, player: str) -> None:
        optimizer = self._optimizer_of(player)
        self.meter.add({f"grad_norm_{player}" if len(self.players) > 1 else "grad_norm": self._clip(player)})
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for average, follows in self.averages().values():
            if follows == player:
                average.update()

    def _optimizer_of(self, player: str) -> Any:
        optimizers = self.optimizers()
        return optimizers[self._player_order.index(player)] if isinstance(optimizers, list) else optimizers

    def _clip(self, player: str) -> Tensor:
        """Clip the player's gradient; return its norm (scalar) before that. Under 16-mixed both are in units of the scaled loss."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        limit = self.clip_grad_norm * scale if self.clip_grad_norm else math.inf
        return nn.utils.clip_grad_norm_(self.players[player], limit, foreach=True) / scale

    def _finish_step(self) -> None:
        for scheduler in self._schedulers.values():
            scheduler.step()
        self.train_step += 1
        if self.train_step % self.log_every_n_steps == 0:
            self.log_metrics({f"train/{name}": value for name, value in (self.meter.pop() | self._learning_rates()).items()})

    def _learning_rates(self) -> dict[str, float]:
        optimizers = self.optimizers()
        listed = optimizers if isinstance(optimizers, list) else [optimizers]
        suffix = {name: f"_{name}" if len(self._player_order) > 1 else "" for name in self._player_order}
        return {f"lr{suffix[name]}": optimizer.param_groups[0]["lr"] for name, optimizer in zip(self._player_order, listed, strict=True)}

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Send scalars to every logger at this train step, and to Lightning's own table, which monitors read.

        Raises:
            FloatingPointError: a loss is not finite, so the weights are lost and going on is a waste.
        """
        bad = [f"{name} = {value}" for name, value in metrics.items() if "loss" in name and not math.isfinite(value)]
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), step=self.train_step)
        if self.trainer.training and not self.trainer.validating:
            self.log_dict(dict(metrics), logger=False)
        if bad:
            raise self._diverged(", ".join(bad))

    def check_weights(self) -> None:
        """Before weights are saved: a loss may have been finite, or not looked at yet, where they no longer are.

        Raises:
            FloatingPointError: some weights are NaN or infinite.
        """
        weights = dict(self.named_parameters())
        finite = torch.stack([weight.isfinite().all() for weight in weights.values()]).tolist()  # one wait for the device
        bad = [name for name, good in zip(weights, finite, strict=True) if not good]
        if bad:
            raise self._diverged(f"{bad[0]} is not finite")

    def _diverged(self, what: str) -> FloatingPointError:
        return FloatingPointError(
            f"training diverged before step {self.train_step}: {what}. Lower the learning rate, set clip_grad_norm, "
            "or look for bad audio in the data; --recover goes on from the newest good checkpoint"
        )

    def on_validation_epoch_end(self) -> None:
        """Send the validation means, which Lightning has gathered, to the loggers under this train step."""
        means = {name: float(value) for name, value in self.trainer.callback_metrics.items() if name.startswith("val/")}
        for logger in self.loggers:
            logger.log_metrics(means, step=self.train_step)

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = {"train_step": self.train_step, "rng": rng_state()}
        checkpoint["model_config"] = self.model_config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if saved := checkpoint.get(CHECKPOINT_KEY):
            self.train_step = saved["train_step"]
            self._rng_to_restore = saved["rng"]

    def on_train_start(self) -> None:
        state = self.__dict__.pop("_rng_to_restore", None)
        if state and self.global_rank:  # the checkpoint has the generators of rank 0
            torch.manual_seed(derive_seed(torch.initial_seed(), self.train_step))
        elif state:
            restore_rng(state)


def average_of(module: nn.Module) -> EMA:
    """An EMA with the warm-up schedule and constants of the published models; the online weights are not stored twice."""
    return EMA(module, beta=0.9999, power=3 / 4, update_every=1, update_after_step=1, include_online_model=False, use_foreach=True)


def with_modules(module: nn.Module, **replaced: nn.Module) -> nn.Module:
    """A view of `module` in which some children are replaced; nothing is copied and `module` does not change."""
    view = module.__class__.__new__(module.__class__)
    view.__dict__ = {**module.__dict__, "_modules": {**module._modules, **replaced}}
    return view
