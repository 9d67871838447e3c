"""A run that was stopped and resumed is the run that never was: every wrapper, one process and two, wherever the stop falls.

Compared are the losses as exact numbers, the items of every batch, and all that the last checkpoint holds: weights, averages,
optimizers, schedulers, the generators of every rank, the position in the data.
"""

import itertools
import os
import signal

import configs
import lightning.pytorch as pl
import pytest
import torch
from ranks import batches, train
from test_arc import arc
from test_host import Repeat, fit, wrapper

from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_model
from stable_audio_tools.training.checkpoint_io import SAVED_AT_KEY
from stable_audio_tools.training.rank_state import rank_state, restore_rank

STEPS = 9
ITEMS = 16  # 4 micro-batches an epoch, of 4 items in all


def arc_after_warmup(folder):
    """ARC whose warm-up ends after step 3, with trajectories in use for two steps: stops fall before, on and after the change."""
    config = configs.text_to_audio()
    torch.manual_seed(5)
    save_model(folder / "teacher.safetensors", create_model_from_config(config), config)
    warmup = {"warmup_steps": 3, "refresh_rate": 2, "sampling_steps": 3, "cfg": 2.0}
    return arc(use_model_as_teacher=True, teacher_model_ckpt=str(folder / "teacher.safetensors"), ode_warmup=warmup)


TOLD = [{"type": "prefix", "seconds": [0.02, 0.1], "probability": 0.5}, {"type": "suffix", "frames": 16, "probability": 0.5}]
KINDS = {
    "autoencoder": lambda folder: configs.autoencoder(),
    "diffusion_uncond": lambda folder: configs.unconditional(),
    "diffusion_cond": lambda folder: configs.text_to_audio(log_loss_info=True),
    "inpainting": lambda folder: configs.inpainting(timestep_sampler="uniform"),
    "told_frames": lambda folder: configs.text_to_audio(conditions=TOLD),
    "arc": lambda folder: arc(base=configs.inpainting, discriminator={"contrastive": True, "include_grad_penalties": True}),
    "arc_warmup": arc_after_warmup,
    "diffusion_autoencoder": lambda folder: configs.diffusion_autoencoder(),
    "lm": lambda folder: configs.language_model(use_ema=True),
}


class Interrupt(pl.Callback):
    """What a scheduler does, after a number of micro-batches."""

    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after -= 1
        if self.after == 0:
            os.kill(os.getpid(), signal.SIGTERM)


# accumulate: micro-batches of a step. Everything else is how the first run ends.
STOPS = {
    "between_turns": {"accumulate": 1, "steps": 3},  # step 2 was the generator's, 3 is the discriminator's
    "mid_epoch": {"accumulate": 1, "steps": 2},
    "epoch_end": {"accumulate": 1, "steps": 4},
    "asked_for_mid_accumulation": {"accumulate": 2, "steps": STEPS, "interrupt": 5},  # saved at the next step's end
    "epoch_ends_mid_accumulation": {"accumulate": 3, "steps": STEPS, "max_epochs": 2},  # saved with two of three batches taken
}
WORKERS = (0, 2)
GRID = list(itertools.product(STOPS, WORKERS))


def whole(config, processes, accumulate, folder):
    return run(config, processes, 0, folder, steps=STEPS, accumulate=accumulate)


def resumed(config, processes, stop, workers, folder):
    """A run that ends as `stop` says, and another that goes on from its checkpoint."""
    ending = dict(STOPS[stop])
    callbacks = [Interrupt(ending.pop("interrupt"))] if "interrupt" in ending else []
    losses, keys = run(config, processes, workers, folder / "first", *callbacks, **ending)
    start = {"seed": 9, "ckpt_path": folder / "first" / "last.ckpt", "accumulate": ending["accumulate"]}
    more, rest = run(config, processes, workers, folder / "second", steps=STEPS, **start)
    return losses + more, keys + rest


def run(config, processes, workers, folder, *callbacks, **ending):
    """With validations, which must not move what training draws: one that falls on the stop may take place or not."""
    validation = {"validation": batches(config, 2, 4, shuffle=False), "limit_val_batches": 1.0}
    often = {"val_check_interval": 2, "check_val_every_n_epoch": None}
    loader = batches(config, 4 // processes, ITEMS, workers=workers)
    _, losses, keys = train(config, loader, folder, *callbacks, processes=processes, **validation, **often, **ending)
    return [step for step in losses if step], keys


def compare(config, processes, grid, folder):
    """On each process: run all of `grid` against whole runs. Returns what differs, nothing if all is well."""
    references, wrong = {}, []
    for stop, workers in grid:
        accumulate, place = STOPS[stop]["accumulate"], folder / f"{stop}_{workers}"
        reference = folder / f"whole_{accumulate}"
        if accumulate not in references:
            references[accumulate] = whole(config, processes, accumulate, reference)
        found = resumed(config, processes, stop, workers, place)
        wrong += [f"{place.name}: {name}" for name, a, b in zip(("losses", "keys"), references[accumulate], found, strict=True) if a != b]
        ends = (torch.load(path / "last.ckpt", weights_only=True) for path in (reference, place / "second"))
        wrong += [f"{place.name}: {path}" for path in differences(*ends)]
    return wrong


def differences(a, b, path=""):
    """Paths at which two checkpoints differ, but for when they were saved and Lightning's count of batches fetched."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        keys = (a.keys() | b.keys()) - {SAVED_AT_KEY, "loops", "callbacks"}
        return [found for key in sorted(keys, key=str) for found in differences(a.get(key), b.get(key), f"{path}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [found for index, pair in enumerate(zip(a, b, strict=True)) for found in differences(*pair, f"{path}.{index}")]
    return [] if a == b else [path]


def check(kind, processes, grid, folder, request):
    config = KINDS[kind](folder)
    if processes == 1:
        assert compare(config, 1, grid, folder) == []
    else:
        assert request.getfixturevalue("ranks")(compare, config, 2, grid, folder) == [[], []]


def sample(kind, processes):
    """A part of the grid, such that every kind meets every stop, and every stop both numbers of processes and of workers."""
    shift = list(KINDS).index(kind) + processes
    return [(stop, WORKERS[(number + shift) // 2 % 2]) for number, stop in enumerate(STOPS) if (number + shift) % 2]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(kind, processes, tmp_path, request):
    check(kind, processes, sample(kind, processes), tmp_path, request)


@pytest.mark.exhaustive
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_stop_of_every_run_is_exact(kind, processes, tmp_path, request):
    check(kind, processes, GRID, tmp_path, request)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "arc"])  # whose two losses pull against each other
@pytest.mark.slow
def test_twenty_steps_on_one_batch_lower_its_loss(kind, tmp_path):
    config = KINDS[kind](tmp_path)
    if kind == "arc_warmup":
        config["training"]["arc"]["ode_warmup"] |= {"warmup_steps": 21, "refresh_rate": 100}
    module = wrapper(config)
    batch = next(iter(batches(config, 4, ITEMS)))

    def loss():
        """With the same noise, timesteps and masks at each call; of the model's turn."""
        with torch.random.fork_rng():
            torch.manual_seed(7)
            kept = rank_state(module.strategy)
            module.strategy.start(seed=3, rank=0)
            (update,) = module.strategy.updates(module.model, module.prepare(batch), 0)
            restore_rank(kept, module.strategy)
            return update.output.loss.item()

    before = loss()
    fit(module, Repeat(batch), 20)
    assert loss() < 0.97 * before
