"""Two processes that train together are one run: its gradients, its data, its files, whatever each of them is given."""

import os
import random

import configs
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from ranks import batches, train
from test_host import wrapper
from test_matrix import KINDS

from stable_audio_tools.data.loader import AudioLoader
from stable_audio_tools.diffusion.seeds import derive_seed
from stable_audio_tools.training import create_demo_callback_from_config
from stable_audio_tools.training.noising import noisy_at
from stable_audio_tools.training.rank_state import rank_state, restore_rank
from stable_audio_tools.training.rng import restore_rng, rng_state, seed_generators

pytestmark = pytest.mark.slow
UNTIL = 4  # ARC's warm-up ends after step 3; the generator's turn and the discriminator's both come before


class Gradients(pl.Callback):
    """What each optimizer step is made of."""

    def __init__(self):
        self.found = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.found.append({name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None})


def gradients_together(config, folder, padded=False):
    """On each of two processes."""
    seen = Gradients()
    loader = batches(config, 2, 16)
    train(config, Padded(loader) if padded else loader, folder, seen, steps=UNTIL, processes=2)
    return seen.found


def gradients_by_hand(config):
    """One process that plays the ranks in turn, each with its own generators, and steps by the mean of their gradients."""
    module = wrapper(config).train()
    optimizers = dict(zip(module.strategy.players(module.model), module.configure_optimizers()[0], strict=True))
    data = [iter(batches(config, 2, 16, rank=rank, world_size=2)) for rank in (0, 1)]
    states, found = [], []
    for rank in (0, 1):
        if rank:
            seed_generators(derive_seed(0, rank))
        module.strategy.start(seed=0, rank=rank)
        states.append(rank_state(module.strategy))
    for step in range(UNTIL):
        module.train_step, each = step, []
        for rank in (0, 1):
            module.strategy.start(seed=0, rank=rank)
            restore_rank(states[rank], module.strategy)
            each.append(gradients_of(module, next(data[rank]), step))
            states[rank] = rank_state(module.strategy)
        (player, first), (_, second) = each
        for name, parameter in module.named_parameters():
            parameter.grad = (first[name] + second[name]) / 2 if name in first else None
        found.append({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})
        optimizers[player].step()
    return found


def gradients_of(module, batch, step):
    module.zero_grad(set_to_none=True)
    (player,) = (u.player for u in module.strategy.updates(module.model, module.prepare(batch), step) if u.output.loss.backward() is None)
    return player, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_alike(ours, theirs):
    assert len(ours) == len(theirs) == UNTIL
    for mine, other in zip(ours, theirs, strict=True):
        for name in mine.keys() | other.keys():  # a parameter without a gradient on any rank is told zeros, or nothing
            a, b = mine.get(name), other.get(name)
            torch.testing.assert_close(torch.zeros_like(b) if a is None else a, torch.zeros_like(a) if b is None else b, msg=name, **CLOSE)


CLOSE = {"rtol": 1e-3, "atol": 1e-5}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_takes_the_mean_of_the_gradients_of_all_ranks_each_with_its_own_noise(kind, ranks, tmp_path):
    config = KINDS[kind](tmp_path)
    first, second = ranks(gradients_together, config, tmp_path / "run")
    assert_alike(first, gradients_by_hand(config))
    assert all(torch.equal(value, b[name]) for a, b in zip(first, second, strict=True) for name, value in a.items())


class Padded:
    """The batches of a loader, of which each item is real for a time of its own."""

    def __init__(self, loader):
        self.loader, self.close = loader, loader.close

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for audio, metadata in self.loader:
            real = [200 + 1800 * (sum(item["path"].encode()) % 7) // 7 for item in metadata]
            masks = [torch.arange(audio.shape[-1]) < length for length in real]
            yield audio, tuple({**item, "padding_mask": mask} for item, mask in zip(metadata, masks, strict=True))


@pytest.mark.parametrize("kind", ["lm", "diffusion_uncond"])
def test_padding_counts_as_in_one_process_with_the_double_batch(kind, ranks, tmp_path):
    first, second = ranks(padded_gradients, kind, 2, tmp_path / "two")
    alone = padded_gradients(kind, 1, tmp_path / "one")
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-6, msg=name)
        assert torch.equal(first[name], second[name])


def padded_gradients(kind, processes, folder):
    """Of the first step on 4 padded items, whose noise does not depend on who has them."""
    config = {"lm": configs.language_model(cfg_dropout_prob=0.0), "diffusion_uncond": configs.unconditional(mask_padding=True)}[kind]
    seen = Gradients()
    data = Padded(batches(config, 4 // processes, 16))
    train(config, data, folder, seen, *([SilentNoise()] if kind == "diffusion_uncond" else []), steps=1, processes=processes)
    return seen.found[0]


class SilentNoise(pl.Callback):
    """All is at one noise level, and every item has the same noise."""

    def on_train_start(self, trainer, pl_module):
        pl_module.strategy.noising.draw = self.draw

    @staticmethod
    def draw(model, batch):
        noise = torch.randn(batch.latents.shape[1:], generator=torch.Generator().manual_seed(1))
        return noisy_at(model, batch.latents, noise.expand_as(batch.latents), torch.full((len(batch.latents),), 0.4))


class Validated(pl.Callback):
    def __init__(self):
        self.losses = []

    def on_validation_end(self, trainer, pl_module):
        self.losses.append(float(trainer.callback_metrics["val/loss"]))


@pytest.mark.parametrize("kind", ["diffusion_cond", "autoencoder", "lm"])
def test_data_that_do_not_share_out_evenly_end_every_epoch_on_every_rank(kind, ranks, tmp_path):
    first, second = ranks(uneven, KINDS[kind](tmp_path), tmp_path / "run")
    (losses, keys, validated), (other_losses, other_keys, other_validated) = first, second
    assert len(validated) == 2 and validated == other_validated
    assert losses == other_losses  # what is logged is the mean of both
    for epoch in (slice(0, 4), slice(4, 8)):
        served = [key for batch in keys[epoch] + other_keys[epoch] for key in batch]
        assert len(set(served)) == len(served) == 13
    assert len(keys) == len(other_keys) == 8


def uneven(config, folder):
    """Two epochs of 13 items over two ranks in batches of two, with validation."""
    watch, whole = Validated(), batches(config, 2, 13)
    loader = AudioLoader(whole.dataset, 2, drop_last=False)
    val = batches(config, 2, 5, shuffle=False)
    _, losses, keys = train(config, loader, folder, watch, steps=100, processes=2, validation=val, max_epochs=2, limit_val_batches=1.0)
    return losses, keys, watch.losses


@pytest.mark.parametrize(("before", "after", "batch_size", "workers"), [(1, 2, 4, 0), (1, 2, 2, 2), (2, 1, 4, 0), (1, 1, 2, 2)])
def test_an_epoch_holds_each_item_once_however_many_processes_go_on_with_it(before, after, batch_size, workers, ranks, tmp_path):
    config = configs.text_to_audio()
    begun = on(before, ranks, served, config, before, 4 // before, 0, 2, tmp_path / "first", None)
    rest = on(
        after, ranks, served, config, after, batch_size, workers, 2 + 8 // (batch_size * after), tmp_path / "second", tmp_path / "first"
    )
    items = sorted(key for rank in begun + rest for batch in rank for key in batch)
    everything = sorted(key for batch in batches(config, 4, 16) for key in (item["path"] for item in batch[1]))
    assert items == everything and len(set(items)) == 16


def on(processes, ranks, function, *arguments):
    return [function(*arguments)] if processes == 1 else ranks(function, *arguments)


def served(config, processes, batch_size, workers, steps, folder, start):
    """The items of every batch of this process until `steps`."""
    loader = batches(config, batch_size, 16, workers=workers)
    return train(config, loader, folder, steps=steps, processes=processes, ckpt_path=start and start / "last.ckpt")[2]


def test_another_number_of_processes_is_said_and_draws_new_noise_in_a_repeatable_way(ranks, tmp_path, caplog):
    config = configs.unconditional()
    train(config, batches(config, 4, 16), tmp_path / "one", steps=2)
    first, again = (ranks(noise_after_resume, config, tmp_path / "one", tmp_path / f"two{n}") for n in (0, 1))
    assert first == again and first[0] != first[1]
    with caplog.at_level("WARNING"):
        train(config, batches(config, 4, 16), tmp_path / "last", steps=4, ckpt_path=tmp_path / "two0" / "last.ckpt")
    assert "the run had 2 processes and now has 1: the data are shared out anew, with new noise" in caplog.text


def noise_after_resume(config, start, folder):
    """The generator after one more step."""
    train(config, batches(config, 2, 16), folder, steps=3, processes=2, ckpt_path=start / "last.ckpt")
    return torch.get_rng_state().tolist()


def test_files_are_written_by_the_first_rank_alone(ranks, tmp_path):
    names = ranks(files_of_a_run, configs.text_to_audio(demo={"demo_every": 2, "demo_steps": 2, "demo_cond": [{"prompt": "a"}]}), tmp_path)
    assert {"last.ckpt", "step=00000002.ckpt", "step_00000002"} <= set(names[0])
    assert names[1] == []


def files_of_a_run(config, folder):
    own = folder / f"rank{os.environ['LOCAL_RANK']}"
    demos = create_demo_callback_from_config(config, folder=own / "demos")
    train(config, batches(config, 2, 16), own, demos, steps=2, processes=2)
    return sorted(path.name for path in own.rglob("*")) if own.exists() else []


@pytest.mark.parametrize("kind", ["diffusion_uncond", "diffusion_cond", "inpainting", "diffusion_autoencoder", "lm"])
def test_one_player_has_a_gradient_for_all_that_it_trains_so_plain_ddp_does(kind, ranks, tmp_path):
    ranks(plainly, KINDS[kind](tmp_path), tmp_path / "run")


def plainly(config, folder):
    train(config, batches(config, 2, 16), folder, steps=3, processes=2, strategy="ddp")


def test_every_generator_goes_on_where_it_was():
    torch.randn(3), random.gauss(0, 1), np.random.randn(1)  # both keep a second normal number for later
    state = rng_state()
    drawn = [torch.rand(2).tolist(), random.gauss(0, 1), random.random(), np.random.randn(3).tolist(), np.random.rand()]
    seed_generators(5)
    restore_rng(state)
    assert drawn == [torch.rand(2).tolist(), random.gauss(0, 1), random.random(), np.random.randn(3).tolist(), np.random.rand()]
