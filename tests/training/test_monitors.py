"""What is watched at validation: the best weights stay, a run that gets no better ends, and a resumed run counts on; and the finders."""

import csv
import json
import math
import random
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.training import finders
from stable_audio_tools.training.checkpoint_io import AtomicCheckpointIO, newest_good_checkpoint
from stable_audio_tools.training.checkpoints import RunCheckpoint, StopAtStep
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.data_module import AudioDataModule
from stable_audio_tools.training.finders import RangeTest, find_batch_size, find_learning_rates, write_range_tests
from stable_audio_tools.training.machine import quiet_lightning
from stable_audio_tools.training.monitor import Goal, ValidationMonitor
from stable_audio_tools.training.plan import make_plan
from stable_audio_tools.training.start import StepSettings, build_module

CPU = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}
quiet_lightning()


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("min_delta", [0.0, 0.3])
def test_waiting_is_counted_as_lightning_counts_it(mode, min_delta):
    draw = random.Random(0)
    for _ in range(50):
        theirs = EarlyStopping("val/loss", mode=mode, min_delta=min_delta, patience=1000)
        values = [draw.gauss(0, 1) for _ in range(draw.randrange(1, 12))]
        for value in values:
            theirs._evaluate_stopping_criteria(torch.tensor(value, dtype=torch.float64))
        assert Goal(mode=mode, min_delta=min_delta).waited(values) == theirs.wait_count


@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_is_no_number_is_no_improvement(mode):
    goal = Goal(mode=mode)
    assert goal.waited([math.nan, math.inf, -math.inf]) == 3 and goal.waited([1.0, math.nan, math.inf, -math.inf]) == 3


class Scripted:
    """A run whose validation, after each step, says what is written here."""

    def __init__(self, folder, values, **goal):
        self.folder, self.values, self.goal = folder, values, Goal(**goal)
        self.exported = []

    def fit(self, steps, *, resume=False, every=1):
        config = configs.text_to_audio()
        module = build_module(parse_run_config(config), config, seed=0, steps=StepSettings(log_every=1))
        module.validation_step = lambda batch, batch_idx: module.log(
            "val/score", self.values[module.train_step - 1], logger=False, batch_size=1
        )
        data = AudioDataModule({"dataset_type": "synthetic", "num_items": 24}, num_workers=0)
        data.build(parse_run_config(config))
        checkpoint = RunCheckpoint(self.folder, every=every, keep=-1)
        monitor = ValidationMonitor(self.goal, checkpoint, lambda module: self.exported.append(module.train_step))
        trainer = pl.Trainer(
            **CPU,
            max_epochs=-1,
            logger=False,
            val_check_interval=1,
            check_val_every_n_epoch=None,
            limit_val_batches=1,
            num_sanity_val_steps=0,
            callbacks=[StopAtStep(steps), monitor, checkpoint],
            plugins=[AtomicCheckpointIO()],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        path = newest_good_checkpoint(self.folder) if resume else None
        trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
        self.weights = {key: value.detach().clone() for key, value in module.named_parameters()}
        return module.train_step

    def kept(self):
        return sorted(int(path.name[len("best_step=") :].partition("_")[0]) for path in self.folder.glob("best_step=*.ckpt"))


def test_the_best_checkpoints_stay(tmp_path):
    run = Scripted(tmp_path, [3.0, 1.0, 2.0, math.nan, 0.5, 0.7], metric="val/score", save_best=2)
    run.fit(6, every=0)
    assert run.kept() == [5, 6] and run.exported == [1, 2, 5]
    assert (tmp_path / "best.ckpt").samefile(tmp_path / "best_step=00000005_val_score=0.5.ckpt")
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["stable_audio_tools"]["train_step"] == 5
    assert not list(tmp_path.glob("*.tmp*"))
    history = json.loads((tmp_path / "monitor.json").read_text())["history"]
    assert [step for step, value in history if value is None] == [4]


def test_more_is_better_where_the_mode_says_so(tmp_path):
    run = Scripted(tmp_path, [1.0, 3.0, 2.0], metric="val/score", mode="max")
    run.fit(3)
    assert run.kept() == [2] and run.exported == [1, 2]


@pytest.mark.slow
def test_a_resumed_run_counts_on(tmp_path):
    values = [1.0, 2.0, 0.9, 2.0, 2.0, 2.0, 2.0]
    straight = Scripted(tmp_path / "straight", values, metric="val/score", patience=3)
    assert straight.fit(7) == 6
    stopped = Scripted(tmp_path / "stopped", values, metric="val/score", patience=3)
    assert stopped.fit(4) == 4
    (tmp_path / "stopped" / "best.ckpt").unlink()
    assert stopped.fit(7, resume=True) == 6 and stopped.kept() == [3]
    assert stopped.fit(7, resume=True) == 6  # the wait is over already


@pytest.mark.slow
def test_the_count_is_in_the_checkpoint_too(tmp_path):
    """As after a resume from a checkpoint that was copied elsewhere; that of a step is written before its own validation."""
    values = [1.0, *[2.0] * 9]
    run = Scripted(tmp_path, values, metric="val/score", patience=4)
    run.fit(3)
    (tmp_path / "monitor.json").unlink()
    assert run.fit(10, resume=True) == 6
    assert Scripted(tmp_path / "other", values, metric="val/score", patience=4).fit(10) == 5


@pytest.mark.slow
@pytest.mark.parametrize("stop", [3, 6], ids=["in an epoch", "at its end"])
def test_a_run_that_ended_early_goes_on_as_if_it_had_not(tmp_path, stop):
    values = [*(10.0 - step for step in range(stop - 2)), *[20.0] * 9]
    early = Scripted(tmp_path / "early", values, metric="val/score", patience=2)
    assert early.fit(9, every=0) == stop
    early.goal = Goal("val/score")
    assert early.fit(9, resume=True, every=0) == 9
    straight = Scripted(tmp_path / "straight", values, metric="val/score")
    straight.fit(9, every=0)
    assert straight.weights.keys() == early.weights.keys()
    assert all(torch.equal(value, early.weights[key]) for key, value in straight.weights.items())


def test_an_unknown_metric_is_named_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Scripted(tmp_path, [1.0], metric="val/scor").fit(2)
    assert "--monitor val/scor" in str(caught.value) and 'did you mean "val/score"' in str(caught.value)


# finders


@pytest.fixture
def parts():
    """The config, a builder and a loader of a tiny text-to-audio training."""
    document = configs.text_to_audio()
    config = parse_run_config(document)
    data = AudioDataModule({"dataset_type": "synthetic", "num_items": 64, "hold_out": 0}, num_workers=0)
    data.build(config)
    return config, partial(build_module, config, document, seed=0), data.trial_batches


@pytest.mark.slow
def test_the_batch_is_the_largest_that_is_planned_to_fit(parts):
    memory = make_plan(parts[0], batch_size=3).memory.total
    assert find_batch_size(*parts, CPU, items=64, memory=memory) == 3


def test_the_batch_is_no_larger_than_the_data(parts):
    assert find_batch_size(*parts, CPU, items=1, memory=10**12) == 1


@pytest.mark.slow
def test_no_batch_fits_too_little_memory(parts):
    with pytest.raises(ConfigError, match=r"--batch-size auto(.|\n)*too little for one clip(.|\n)*shorten sample_size"):
        find_batch_size(*parts, CPU, items=64, memory=1000)


def test_finders_need_one_device(parts):
    two = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "precision": "32-true"}
    with pytest.raises(ConfigError, match=r"--batch-size auto(.|\n)*one device(.|\n)*plan --memory"):
        find_batch_size(*parts, two, items=64, memory=10**9)
    with pytest.raises(ConfigError, match=r"--find-lr(.|\n)*one device"):
        find_learning_rates(*parts[1:], two, batch_size=4)


@pytest.mark.slow
def test_a_trial_that_runs_out_of_memory_does_not_fit(parts):
    """The real step, with memory that ends in the second one."""
    _, build, loader = parts
    assert finders._fits(build, loader(4), CPU)

    class Full(torch.optim.Adam):
        def step(self, closure=None):
            if self.state:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().step(closure)

    def too_much():
        module = build()
        module.configure_optimizers = lambda: _with_optimizer(module, Full)
        return module

    assert not finders._fits(too_much, loader(4), CPU)


def _with_optimizer(module, kind):
    type(module).configure_optimizers(module)
    return [kind(parameters) for parameters in module.players.values()]


def test_other_errors_of_a_trial_are_errors(parts):
    _, build, loader = parts

    def broken():
        module = build()
        module.prepare = lambda batch: (_ for _ in ()).throw(RuntimeError("no such thing"))
        return module

    with pytest.raises(RuntimeError, match="no such thing"):
        finders._fits(broken, loader(4), CPU)


def test_the_suggested_rate_is_where_the_loss_falls_most():
    rates = np.geomspace(1e-7, 1, 200)
    falling = 1 / (1 + (rates / 1e-3) ** 2)  # half way at 1e-3
    test = RangeTest("diffusion", rates.tolist(), (falling + np.where(rates > 0.1, 50 * rates, 0)).tolist())
    assert 3e-4 < test.suggestion < 1e-2  # smoothing looks back, so it comes a little late
    assert RangeTest("diffusion", rates.tolist(), rates.tolist()).suggestion is None
    assert RangeTest("diffusion", [1e-3, 1e-2], [1.0, 0.5]).suggestion is None


def test_a_loss_that_explodes_ends_the_test():
    assert not RangeTest("x", [1.0] * 4, [1.0, 0.9, 1.1, 1.0]).diverged
    assert RangeTest("x", [1.0] * 4, [1.0, 0.9, 1.1, 400.0]).diverged
    assert RangeTest("x", [1.0], [math.nan]).diverged


@pytest.mark.slow
def test_each_player_has_a_test_of_its_own(tmp_path):
    document = configs.autoencoder()
    config = parse_run_config(document)
    data = AudioDataModule(num_workers=0)
    data.build(config)
    tests = find_learning_rates(partial(build_module, config, document, seed=0), data.trial_batches, CPU, batch_size=2, trials=3)
    assert [test.player for test in tests] == ["autoencoder", "discriminator"]
    for test in tests:
        assert test.rates == np.geomspace(1e-7, 1, 3).tolist()[: len(test.rates)] and len(test.rates) >= 2
        assert all(math.isfinite(loss) for loss in test.losses)
    write_range_tests(tests, tmp_path / "lr.csv")
    with (tmp_path / "lr.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["player"], float(row["learning_rate"])) for row in rows] == [(t.player, rate) for t in tests for rate in t.rates]


@pytest.mark.slow
def test_rates_are_what_the_optimizer_moves_by(parts):
    """SGD without momentum: a rate of zero would leave the weights, a growing one moves them more at each step."""
    moved = []
    document = configs.text_to_audio(optimizer_configs={"diffusion": {"optimizer": {"type": "SGD", "config": {"lr": 0.0}}}})
    del document["training"]["learning_rate"]

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            self.before = torch.cat([p.detach().flatten().clone() for p in module.players["diffusion"]])

        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            after = torch.cat([p.detach().flatten() for p in module.players["diffusion"]])
            moved.append(float((after - self.before).norm()))

    def build():
        module = build_module(parse_run_config(document), document, seed=0)
        module.configure_callbacks = lambda: [Watch()]
        return module

    (test,) = find_learning_rates(build, parts[2], CPU, batch_size=4, trials=4)
    assert len(moved) == len(test.rates) == 4 and moved == sorted(moved) and moved[-1] > 100 * moved[1] > 0
