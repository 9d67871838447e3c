"""Weights shared out among two processes: the training is the same, and so are its files; and what accumulation sends around."""

import contextlib
import csv
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import safetensors.torch
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs
from ranks import Ranks, batches, free_port, train
from test_arc import arc
from test_host import wrapper

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import load_into, load_weights
from stable_audio_tools.training.checkpoint_io import AtomicCheckpointIO, check_fits
from stable_audio_tools.training.machine import machine_arguments
from stable_audio_tools.training.parallel import FullyShardedStrategy

SGD = {"optimizer": {"type": "SGD", "config": {"lr": 0.05, "momentum": 0.9}}}  # Adam turns rounding of a tiny gradient into whole steps


def conditional(global_cond_type="adaLN"):
    config = configs.text_to_audio(use_ema=True, optimizer_configs={"diffusion": SGD}, learning_rate=None, clip_grad_norm=0.05)
    config["model"]["diffusion"]["config"]["global_cond_type"] = global_cond_type
    return config


def inpainting():
    return configs.inpainting(use_ema=True, optimizer_configs={"diffusion": SGD}, learning_rate=None)


def unconditional():
    return configs.unconditional(use_ema=True, optimizer_configs={"diffusion": SGD}, learning_rate=None)


def language_model():
    return configs.language_model(use_ema=True, optimizer_configs={"lm": SGD}, learning_rate=None)


def diffusion_autoencoder():
    return configs.diffusion_autoencoder(optimizer_configs={"diffusion": SGD}, learning_rate=None)


def adversarial():
    return arc(discriminator={"contrastive": True, "include_grad_penalties": True})


KINDS = {
    "adaLN": conditional,
    "prepend": lambda: conditional("prepend"),
    "inpainting": inpainting,
    "unconditional": unconditional,
    "language_model": language_model,
    "diffusion_autoencoder": diffusion_autoencoder,
    "arc": adversarial,
}


@pytest.fixture(scope="module")
def ranks():
    both = Ranks()
    yield both
    both.close()


def fit(kind, strategy, folder, steps, accumulate=1, ckpt_path=None, options=None, callbacks=()):
    """On one rank, or alone: train, and leave the checkpoint. Returns the losses, and which weights are shared out."""
    config = KINDS[kind]()
    machine = {"alone": {}, "ddp": {}, "fsdp": {"strategy": FullyShardedStrategy()}}[strategy]
    module, losses, _ = train(
        config,
        batches(config, 2, 16),
        folder,
        *callbacks,
        steps=steps,
        accumulate=accumulate,
        ckpt_path=ckpt_path,
        processes=1 if strategy == "alone" else 2,
        plugins=[AtomicCheckpointIO()],
        **machine | (options or {}),
    )
    return losses, {name for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)}


def checkpoint(folder):
    (path,) = folder.glob("step=*.ckpt")
    return path


def saved(folder):
    return torch.load(checkpoint(folder), weights_only=True)


def assert_close(found, expected, **tolerance):
    """The same structure, and numbers that differ by rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        kernel = ("fused", "foreach")  # how it is computed, which may differ
        found, expected = ([each[key] for key in expected if key not in kernel] for each in (found, expected))
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_close(*pair, **tolerance)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, **tolerance)
    else:
        assert found == expected


def assert_same_training(found, expected, **tolerance):
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_close(found[part], expected[part], **tolerance)
    assert_close(found["stable_audio_tools"]["ranks"], expected["stable_audio_tools"]["ranks"], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_shared_out_weights_train_as_whole_ones(kind, ranks, tmp_path):
    ranks(partial(fit, kind, "ddp", tmp_path / "ddp", 4))
    (losses, shared), _ = ranks(partial(fit, kind, "fsdp", tmp_path / "fsdp", 4))
    assert_same_training(saved(tmp_path / "fsdp"), saved(tmp_path / "ddp"), rtol=1e-4, atol=1e-6)
    assert len(losses) == 4
    assert shared and all(".layers." in name for name in shared)
    assert not any("pretransform" in name or "conditioner" in name for name in shared)


@pytest.mark.slow
def test_a_file_of_shared_out_weights_is_one_like_any_other(ranks, tmp_path):
    ranks(partial(fit, "adaLN", "fsdp", tmp_path / "first", 2))
    path = checkpoint(tmp_path / "first")
    config = conditional()
    check_fits(path, wrapper(config))
    model = create_model_from_config(config)
    assert load_into(model, load_weights(path, average=False)).complete
    weights = saved(tmp_path / "first")["state_dict"]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[f"diffusion.{name}"])

    ranks(partial(fit, "adaLN", "fsdp", tmp_path / "on", 4, ckpt_path=path))
    ranks(partial(fit, "adaLN", "fsdp", tmp_path / "whole", 4))
    ranks(partial(fit, "adaLN", "ddp", tmp_path / "ddp", 4, ckpt_path=path))
    assert_same_training(saved(tmp_path / "on"), saved(tmp_path / "whole"), rtol=0, atol=0)
    assert_same_training(saved(tmp_path / "ddp"), saved(tmp_path / "whole"), rtol=1e-4, atol=1e-6)
    losses, _ = fit("adaLN", "alone", tmp_path / "alone", 3, ckpt_path=path)
    assert len(losses) == 1


@pytest.mark.slow
def test_shared_out_weights_go_on_from_any_file(ranks, tmp_path):
    ranks(partial(fit, "adaLN", "ddp", tmp_path / "first", 2))
    ranks(partial(fit, "adaLN", "fsdp", tmp_path / "fsdp", 4, ckpt_path=checkpoint(tmp_path / "first")))
    ranks(partial(fit, "adaLN", "ddp", tmp_path / "ddp", 4))
    assert_same_training(saved(tmp_path / "fsdp"), saved(tmp_path / "ddp"), rtol=1e-4, atol=1e-6)
    fit("adaLN", "alone", tmp_path / "alone", 2)
    (losses, _), _ = ranks(partial(fit, "adaLN", "fsdp", tmp_path / "from_one", 3, ckpt_path=checkpoint(tmp_path / "alone")))
    assert len(losses) == 1


class Precisions(pl.Callback):
    """The precisions that a block's weights have while it computes."""

    def __init__(self):
        self.seen = set()

    def on_train_start(self, trainer, pl_module):
        block = pl_module.get_submodule("diffusion.model.model.transformer.layers.1")
        block.ff.register_forward_pre_hook(lambda part, _: self.seen.update(weight.dtype for weight in part.parameters()))


def in_lower_precision(kind, precision, strategy, folder):
    watch = Precisions() if kind == "adaLN" else None
    fit(kind, strategy, folder, 3, options={"precision": precision}, callbacks=[watch] if watch else [])
    return watch and watch.seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precision"), [("adaLN", "bf16-mixed"), ("language_model", "bf16-mixed"), ("arc", "bf16-mixed"), ("adaLN", "bf16-true")]
)
def test_lower_precision_trains_shared_out_weights(kind, precision, ranks, tmp_path):
    """Blocks travel and compute in bfloat16; what is stored and stepped is float32, or bfloat16 too."""
    ranks(in_lower_precision, kind, precision, "ddp", tmp_path / "ddp")
    precisions, _ = ranks(in_lower_precision, kind, precision, "fsdp", tmp_path / "fsdp")
    assert precisions in (None, {torch.bfloat16})
    found, expected = saved(tmp_path / "fsdp"), saved(tmp_path / "ddp")
    assert_close(found["state_dict"], expected["state_dict"], rtol=2e-2, atol=5e-3)
    assert_close(found["optimizer_states"], expected["optimizer_states"], rtol=0.1, atol=1e-2)


def averaged(folder):
    """What becomes of a weight that both processes use, of one that the second uses, and of one that nobody does."""
    strategy = FullyShardedStrategy()
    fit("adaLN", "fsdp", folder, 1)  # starts the processes' connection
    rank = torch.distributed.get_rank()
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    weights[0].grad = torch.tensor([1.0, 2.0]) * (1 + rank)
    weights[1].grad = torch.tensor([4.0, 6.0]) if rank else None
    strategy.cluster_environment = LightningEnvironment()
    strategy.cluster_environment.set_world_size(2)
    strategy.average_gradients(weights)
    return [None if weight.grad is None else weight.grad.tolist() for weight in weights]


@pytest.mark.slow
def test_weights_that_some_processes_do_not_use_are_averaged_with_the_others(ranks, tmp_path):
    assert ranks(averaged, tmp_path) == [[[1.5, 3.0], [2.0, 3.0], None]] * 2


# accumulation


class Gradients(pl.Callback):
    """The gradient of one weight behind each micro-batch that is not its step's last, and what is made of it; may bring back what was."""

    def __init__(self, every):
        self.every, self.seen = every, []

    def on_train_start(self, trainer, pl_module):
        if self.every:
            trainer.strategy.block_backward_sync = contextlib.nullcontext

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        gradient = pl_module.get_parameter("diffusion.model.model.transformer.project_in.weight").grad
        if gradient is not None:
            self.seen.append(gradient.flatten().tolist())


def accumulating(every, folder):
    watch = Gradients(every)
    fit("adaLN", "ddp", folder, 2, accumulate=3, callbacks=[watch])
    return watch.seen


@pytest.mark.slow
def test_processes_average_their_gradients_once_a_step(ranks, tmp_path):
    first, second = ranks(accumulating, False, tmp_path / "once")
    assert len(first) == len(second) == 4
    assert all(one != other for one, other in zip(first, second, strict=True))
    first, second = ranks(accumulating, True, tmp_path / "each")
    assert first == second
    assert_same_training(saved(tmp_path / "once"), saved(tmp_path / "each"), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_half_a_step_is_kept_for_every_process(strategy, ranks, tmp_path):
    """An epoch of four micro-batches ends with one of three taken."""
    ranks(partial(fit, "adaLN", strategy, tmp_path / "half", 9, accumulate=3, options={"max_epochs": 1}))
    state = saved(tmp_path / "half")["stable_audio_tools"]
    assert state["train_step"] == 1 and state["micro_batch"] == 1
    ranks(partial(fit, "adaLN", strategy, tmp_path / "on", 3, accumulate=3, ckpt_path=checkpoint(tmp_path / "half")))
    ranks(partial(fit, "adaLN", strategy, tmp_path / "whole", 3, accumulate=3))
    assert_same_training(saved(tmp_path / "on"), saved(tmp_path / "whole"), rtol=0, atol=0)


@pytest.mark.slow
def test_shared_out_weights_accumulate(ranks, tmp_path):
    ranks(partial(fit, "prepend", "ddp", tmp_path / "ddp", 2, accumulate=2))
    ranks(partial(fit, "prepend", "fsdp", tmp_path / "fsdp", 2, accumulate=2))
    assert_same_training(saved(tmp_path / "fsdp"), saved(tmp_path / "ddp"), rtol=1e-4, atol=1e-6)


# what cannot be


def asked(strategy, devices="2", **more):
    return {"accelerator": "cpu", "devices": devices, "num_nodes": 1, "strategy": strategy, "precision": "32-true", **more}


def test_fsdp_is_fsdp2_on_any_device():
    machine = machine_arguments(asked("fsdp"), players=1, rests=False)
    assert isinstance(machine["strategy"], ModelParallelStrategy)


@pytest.mark.parametrize(
    ("strategy", "devices", "players", "more", "message"),
    [
        ("fsdp", "1", 1, {}, "--strategy fsdp: it shares a model out among several devices, and this run has one.*--devices 2"),
        ("fsdp", "2", 1, {"precision": "16-mixed"}, "--precision 16-mixed.*bf16-mixed"),
        ("deepspeed", "2", 1, {}, "--strategy deepspeed: the package deepspeed is not installed.*--strategy fsdp"),
        ("deepspeed_stage_2", "2", 1, {}, "--strategy deepspeed_stage_2: the package deepspeed is not installed"),
    ],
)
def test_a_strategy_that_cannot_work_is_refused(strategy, devices, players, more, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        machine_arguments(asked(strategy, devices, **more), players=players, rests=players > 1)


def without_blocks(folder):
    config = configs.autoencoder()
    with pytest.raises(ConfigError) as error:
        train(config, batches(config, 2, 16), folder, steps=1, processes=2, strategy=FullyShardedStrategy())
    return str(error.value)


@pytest.mark.slow
def test_a_model_without_transformer_blocks_is_refused(ranks, tmp_path):
    message, _ = ranks(without_blocks, tmp_path)
    assert "this model trains none" in message and "--strategy ddp" in message


# the whole command

TRAIN = [sys.executable, str(Path(__file__).resolve().parents[2] / "train.py")]


def command(folder, strategy, name, *flags):
    """Train with a validation and demos on the way; returns what was said."""
    (folder / "model.json").write_text(json.dumps(conditional()))
    (folder / "data.json").write_text(json.dumps({"dataset_type": "synthetic", "num_items": 24, "hold_out": 0}))
    data = ["--dataset-config", "data.json", "--val-dataset-config", "data.json", "--val-every", "2", "--num-workers", "0"]
    fixed = ["--accelerator", "cpu", "--precision", "32-true", "--batch-size", "2", "--logger", "csv", "--log-every", "1", "--name", name]
    done = subprocess.run(
        [*TRAIN, "--model-config", "model.json", *data, *fixed, "--strategy", strategy, *flags],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def metrics(folder):
    with (folder / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value and "loss" in name} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_the_command_leaves_what_any_training_leaves(tmp_path):
    for strategy in ("ddp", "fsdp"):
        command(tmp_path, strategy, strategy, "--devices", "2", "--max-steps", "3")
    ddp, fsdp = (tmp_path / "runs" / strategy for strategy in ("ddp", "fsdp"))
    left = [{str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} for run in (ddp, fsdp)]
    assert left[0] == left[1]
    assert any(name.startswith("demos/step_00000003/") and name.endswith(".wav") for name in left[1])
    for found, expected in zip(metrics(fsdp), metrics(ddp), strict=True):
        assert found == pytest.approx(expected, rel=1e-3)
    exports = [safetensors.torch.load_file(run / "exports" / "model.safetensors") for run in (ddp, fsdp)]
    assert_close(exports[1], exports[0], rtol=1e-4, atol=1e-6)

    said = command(tmp_path, "auto", "fsdp", "--devices", "1", "--max-steps", "4", "--recover")
    assert "the run had 2 processes and now has 1" in said
    assert json.loads((fsdp / "run.json").read_text())["resumed"] == [3]
