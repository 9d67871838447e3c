"""The Lightning host of every training: one manual loop, one step counter, EMA after the step, logging, export.

What loss is taken is the strategy's business, what the batch becomes is `prepare`'s. `train_step` counts batches that
the optimizers see: accumulated micro-batches are one step, and so is a batch on which several players move. Lightning's
`global_step` counts optimizer calls; nothing here uses it.

A step whose input, loss or gradient is not finite on some rank is dropped on all of them: optimizer, EMA and schedulers never
see it, and neither do the logged means. It counts as a train step all the same, since its batch was seen and players take turns
by step, and as one of `train/skipped_steps`; after `guard.limit` in a row training ends. Players that moved before another one
met the fault have moved. A gradient that overflows in a GradScaler's units is no fault: the scale is lowered, and the step is
dropped without being counted as skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from os import PathLike
from typing import Any

import lightning.pytorch as pl
import torch
from ema_pytorch import EMA
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from stable_audio_tools.diffusion.seeds import derive_seed
from stable_audio_tools.models.checkpoints import save_model
from stable_audio_tools.models.torch_file import save_ckpt
from stable_audio_tools.training.meter import MetricMeter
from stable_audio_tools.training.optim import OptimizerGroup
from stable_audio_tools.training.pace import Pace
from stable_audio_tools.training.parallel import FullyShardedStrategy, clip_gradients, local_part, total_norm, whole_state, with_part
from stable_audio_tools.training.rank_state import gathered, rank_state, restore_rank
from stable_audio_tools.training.rng import seed_generators
from stable_audio_tools.training.step_guard import Cause, StepGuard
from stable_audio_tools.training.strategies.base import TrainingStrategy, Update

log = logging.getLogger(__name__)

CHECKPOINT_KEY = "stable_audio_tools"
UNEXPLAINED = "the norm of the gradient is not finite, though each of its parts is"


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
        self.told_to_stop = False  # this process was: what takes long and is no step may be given up
        self.interrupted = False  # some process was, and all of them know
        self.meter = MetricMeter()
        self.guard = StepGuard()
        self.pace: Pace | None = None
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

    def export_model(self, path: str | PathLike[str], use_safetensors: bool = False) -> None:
        """Write `sampling_model` for inference, as upstream's scripts ask for it; nothing here changes. Every process makes the call.

        Args:
            use_safetensors: with the config in the header; else as `torch.save` writes it.

        Raises:
            OSError: no space, no permission and the like.
        """
        if not (weights := whole_state(self.sampling_model)):  # the first process has them
            return
        if use_safetensors:
            save_model(path, weights, self.model_config, {"train_step": str(self.train_step)})
        else:
            save_ckpt(path, {name: value for name, value in weights.items() if isinstance(value, Tensor)}, self.model_config)

    # the loop

    def setup(self, stage: str) -> None:
        self.seed = torch.initial_seed()
        if stage == "fit" and self.global_rank:  # only now Lightning knows it; every rank draws its own noise
            seed_generators(derive_seed(self.seed, self.global_rank))
        self.strategy.start(seed=self.seed, rank=self.global_rank)

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, FullyShardedStrategy):
            self.trainer.strategy.shard(self.model, [average for average, _ in self.averages().values()])

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        self.players = self.strategy.players(self.model)
        built = {name: self.optimizer_groups[name].build(parameters) for name, parameters in self.players.items()}
        self._player_order = list(built)
        self._schedulers = {name: scheduler for name, (_, scheduler) in built.items() if scheduler is not None}
        return [optimizer for optimizer, _ in built.values()], list(self._schedulers.values())

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Look at the input of a train step before it is on the device, where looking would mean waiting."""
        if self._trainer is not None and self.trainer.training:
            self.guard.look_at_input(batch)
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One micro-batch: let the strategy compute losses, step after the last micro-batch of a train step."""
        last = (self._micro_batch + 1) % self.accumulate_batches == 0
        if self._input_is_good():
            for update in self.strategy.updates(self.model, self.prepare(batch), self.train_step):
                self._backward(update, last)
                if last and not self._optimizer_step(update.player):
                    break
        self._micro_batch = (self._micro_batch + 1) % self.accumulate_batches
        if self.pace is not None:
            self.pace.worked(stepped=last)
        if last:
            self._finish_step()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.pace is not None:
            self.pace.begin(len(batch[1]) * self.trainer.world_size)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.pace is not None:
            self.pace.ready()

    def on_validation_end(self) -> None:
        if self.pace is not None:
            self.pace.ready()

    def _input_is_good(self) -> bool:
        """Whether no rank has met bad input in this step; ranks must agree before any of them takes a loss."""
        if self.guard.verdict == "good" and self.trainer.strategy.reduce_boolean_decision(self.guard.cause is not None, all=False):
            self.guard.verdict = "bad"
        return self.guard.verdict == "good"

    def _backward(self, update: Update, last: bool) -> None:
        """Add to the gradients; processes average them with the last micro-batch alone."""
        strategy = self.trainer.strategy
        self.guard.take(update.output.loss, update.output.logs)
        with strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) and not last else nullcontext():
            self.manual_backward(update.output.loss / self.accumulate_batches)

    def _optimizer_step(self, player: str) -> bool:
        """Step the player's optimizer and what follows it; False: the step is to be dropped, and nothing moved."""
        optimizer, scale = self._optimizer_of(player), self._loss_scale()
        if isinstance(self.trainer.strategy, FullyShardedStrategy):
            self.trainer.strategy.average_gradients(self.players[player])
        norm = total_norm(self._gradients(player))
        verdict = self.guard.judge(self.trainer.strategy.reduce(self.guard.signs(norm), reduce_op="sum"), loss_scale=scale)
        if verdict == "bad":
            return False
        if verdict == "good" and self.clip_grad_norm:
            clip_gradients(self.players[player], self.clip_grad_norm * scale, norm)
        optimizer.step()  # after an overflow the GradScaler lowers its scale here, and does not step
        optimizer.zero_grad(set_to_none=True)
        if verdict == "overflow":
            return False
        self.guard.note({f"grad_norm_{player}" if len(self.players) > 1 else "grad_norm": norm / scale})
        for average, follows in self.averages().values():
            if follows == player:
                average.update()
        return True

    def _optimizer_of(self, player: str) -> Any:
        return self._optimizers()[self._player_order.index(player)]

    def _optimizers(self) -> list[Any]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _gradients(self, player: str) -> list[Tensor]:
        return [parameter.grad for parameter in self.players[player] if parameter.grad is not None]

    def _loss_scale(self) -> float:
        """What gradients are multiplied by: under 16-mixed the scale of the GradScaler."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else scaler.get_scale()

    def _finish_step(self) -> None:
        bad = self.guard.verdict == "bad"
        cause = self._why_bad() if bad else ""
        if self.guard.verdict == "good":
            self._keep_step()
        else:
            self._drop_step()
        last_straw = self.guard.finish()
        self.train_step += 1
        if bad:
            log.warning("step %d is skipped: %s", self.train_step, cause)
        if self.train_step % self.log_every_n_steps == 0:
            self._log_step()
        if last_straw:
            raise self._diverged(f"at step {self.train_step}: {self.guard.in_a_row} steps in a row were skipped, this one because {cause}")

    def _keep_step(self) -> None:
        for logs in self.guard.logs():
            self.meter.add(logs)
        for scheduler in self._schedulers.values():
            scheduler.step()

    def _drop_step(self) -> None:
        for optimizer in self._optimizers():
            optimizer.zero_grad(set_to_none=True)

    def _why_bad(self) -> str:
        """What every rank can tell about a bad step; all of them ask."""
        own = self.guard.explain(dict(self.named_parameters()))
        if self.trainer.world_size == 1:
            return own.text if own else UNEXPLAINED
        causes: list[Cause | None] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(causes, own)
        found = {rank: cause for rank, cause in enumerate(causes) if cause is not None}
        origins = {rank: cause for rank, cause in found.items() if cause.known_here} or found
        return "; ".join(f"rank {rank}: {cause.text}" for rank, cause in origins.items()) or UNEXPLAINED

    def _log_step(self) -> None:
        values = self.meter.pop() | self._learning_rates()
        if self.guard.skipped:
            values["skipped_steps"] = self.guard.skipped
        if self.pace is not None:
            values |= self.pace.pop(self.device)
        self.log_metrics({f"train/{name}": value for name, value in values.items()})

    def _learning_rates(self) -> dict[str, float]:
        rates = [optimizer.param_groups[0]["lr"] for optimizer in self._optimizers()]
        names = [f"lr_{name}" if len(rates) > 1 else "lr" for name in self._player_order]
        return dict(zip(names, rates, strict=True))

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Send scalars to every logger at this train step, and to Lightning's own table, which monitors read."""
        self.send_metrics(metrics)
        if self.trainer.training and not self.trainer.validating:
            self.log_dict(dict(metrics), logger=False)

    def send_metrics(self, metrics: Mapping[str, float]) -> None:
        """Send scalars to every logger at this train step."""
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), step=self.train_step)

    def check_weights(self) -> None:
        """Before weights are saved: gradients may have been finite where the weights they led to are not.

        Raises:
            FloatingPointError: a weight is NaN or infinite, or a buffer NaN; one may hold infinity on purpose.
        """
        sound = {name: local_part(weight).isfinite().all() for name, weight in self.named_parameters()}
        sound |= {name: ~buffer.isnan().any() for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        flags = self.trainer.strategy.reduce(torch.stack(list(sound.values())).int(), reduce_op="min")
        bad = [name for name, good in zip(sound, flags.tolist(), strict=True) if not good]  # one wait for the device
        if bad:
            raise self._diverged(f"before step {self.train_step}: {bad[0]} is not finite")

    def _diverged(self, what: str) -> FloatingPointError:
        return FloatingPointError(
            f"training diverged {what}. Lower the learning rate, set clip_grad_norm, "
            "or look for bad audio in the data; --recover goes on from the newest good checkpoint"
        )

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """What validation measures, on the data of a test."""
        self.validation_step(batch, batch_idx)

    def log_evaluation(self, values: Mapping[str, Any], count: int) -> None:
        """Have Lightning take means over all batches and ranks: under `val/`, or `test/` in a test.

        Args:
            values: of one batch. count: how many signals they are means of.
        """
        stage = "test" if self.trainer.testing else "val"
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self.log_dict(named, on_epoch=True, sync_dist=True, logger=False, batch_size=count)

    def on_validation_epoch_end(self) -> None:
        """Send the validation means, which Lightning has gathered, to the loggers under this train step.

        Not those of a validation that was cut short.
        """
        if self.interrupted:
            return
        means = {name: float(value) for name, value in self.trainer.callback_metrics.items() if name.startswith("val/")}
        self.send_metrics(means)

    # checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        gradients = {name: local_part(p.grad) for name, p in self.named_parameters() if p.grad is not None} if self._micro_batch else {}
        checkpoint[CHECKPOINT_KEY] = {
            "train_step": self.train_step,
            "skipped": self.guard.state_dict(),
            "micro_batch": self._micro_batch,
            "ranks": gathered(rank_state(self.strategy, metrics=self._unlogged(), gradients=gradients)),
        }
        checkpoint["model_config"] = self.model_config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if saved := checkpoint.get(CHECKPOINT_KEY):
            self.train_step = saved["train_step"]
            self.guard.load_state_dict(saved.get("skipped", {}))
            self._resumed = saved

    def on_train_start(self) -> None:
        if saved := self.__dict__.pop("_resumed", None):
            self._restore_rank(saved["ranks"], saved["micro_batch"])

    def _restore_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            parameter = self.get_parameter(name)
            parameter.grad = with_part(gradient, parameter)

    def _unlogged(self) -> dict[str, Any]:
        """The metrics since the last log line, those of a step half accumulated included."""
        meter = self.meter.copy()
        for logs in self.guard.logs():
            meter.add(logs)
        return meter.state_dict()

    def _restore_rank(self, states: Sequence[Mapping[str, Any]], micro_batch: int) -> None:
        if len(states) == self.trainer.world_size:
            self._micro_batch = micro_batch
            self._restore_gradients(states[self.global_rank]["gradients"])
            restore_rank(states[self.global_rank], self.strategy)
            self.meter.load_state_dict(states[self.global_rank]["metrics"], self.device)
        else:
            seed_generators(derive_seed(self.seed, self.train_step, self.global_rank))
            before, now = len(states), self.trainer.world_size
            log.warning("the run had %d processes and now has %d: the data are shared out anew, with new noise", before, now)


def average_of(module: nn.Module) -> EMA:
    """An EMA with the warm-up schedule and constants of the published models; the online weights are not stored twice."""
    return EMA(module, beta=0.9999, power=3 / 4, update_every=1, update_after_step=1, include_online_model=False, use_foreach=True)


def with_modules(module: nn.Module, **replaced: nn.Module) -> nn.Module:
    """A view of `module` in which some children are replaced; nothing is copied and `module` does not change."""
    view = module.__class__.__new__(module.__class__)
    view.__dict__ = {**module.__dict__, "_modules": {**module._modules, **replaced}}
    return view
