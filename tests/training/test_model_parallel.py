"""Weights shared out among two processes: the training is the same, and so are its files; and what accumulation sends around."""

import contextlib
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs
from ranks import Ranks, batches, train
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


@pytest.mark.slow
def test_mixed_precision_trains_shared_out_weights(ranks, tmp_path):
    """Blocks compute and travel in bfloat16; what is stored and stepped is float32."""
    mixed = {"precision": "bf16-mixed"}
    ranks(partial(fit, "adaLN", "ddp", tmp_path / "ddp", 3, options=mixed))
    ranks(partial(fit, "adaLN", "fsdp", tmp_path / "fsdp", 3, options=mixed))
    found, expected = saved(tmp_path / "fsdp")["state_dict"], saved(tmp_path / "ddp")["state_dict"]
    assert all(value.dtype == expected[name].dtype for name, value in found.items() if isinstance(value, torch.Tensor))
    assert_close(found, expected, rtol=2e-2, atol=2e-3)


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
    machine = machine_arguments(asked("fsdp"), players=1)
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
        machine_arguments(asked(strategy, devices, **more), players=players)


def without_blocks(folder):
    config = configs.autoencoder()
    with pytest.raises(ConfigError) as error:
        train(config, batches(config, 2, 16), folder, steps=1, processes=2, strategy=FullyShardedStrategy())
    return str(error.value)


@pytest.mark.slow
def test_a_model_without_transformer_blocks_is_refused(ranks, tmp_path):
    message, _ = ranks(without_blocks, tmp_path)
    assert "this model trains none" in message and "--strategy ddp" in message
