"""Batches of several lengths: which ones a run takes, that every kind of model trains on them, and that their padding is known."""

import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from audio_files import signal, write
from test_arc import arc
from test_host import fit, wrapper

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.training.clip_lengths import clip_lengths
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.data_module import AudioDataModule

KINDS = {
    "autoencoder": configs.autoencoder,
    "diffusion_uncond": configs.unconditional,
    "diffusion_cond": partial(configs.text_to_audio, mask_padding=True),
    "inpainting": partial(configs.inpainting, mask_padding=True),
    "diffusion_autoencoder": configs.diffusion_autoencoder,
    "lm": configs.language_model,
    "arc": partial(arc, base=configs.inpainting),
}
SECONDS = (0.05, 0.06, 0.13, 0.14, 0.2, 0.22, 0.24, 0.5)


def data(folder, config, **options):
    for number, seconds in enumerate(SECONDS):
        write(folder / f"{number}.wav", signal(seconds, 8000, 1, number), 8000)
        (folder / f"{number}.txt").write_text("a bell")
    dataset = {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(folder)}], "variable_length": True, **options}
    module = AudioDataModule(dataset, batch_size=2, num_workers=0)
    module.build(parse_run_config(config))
    return module


class Shapes(pl.Callback):
    def __init__(self):
        self.lengths = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.lengths.append(batch[0].shape[-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_padded_lengths_could_be_the_sample_size(kind):
    config = KINDS[kind]()
    grid = clip_lengths(parse_run_config(config))
    for length in (1, 300, 301, 1000, 1999, config["sample_size"]):
        padded = grid.padded(length)
        assert length <= padded <= config["sample_size"]
        parse_run_config({**config, "sample_size": padded})
    assert grid.padded(config["sample_size"]) == config["sample_size"]
    assert len({grid.padded(length) for length in range(1, config["sample_size"])}) > 4


def test_what_wants_other_multiples_is_kept_to(monkeypatch):
    def parse(document):
        size = document["sample_size"]
        return parse_run_config(document if size % 512 == 0 else {**document, "sample_size": 1})

    monkeypatch.setattr("stable_audio_tools.training.clip_lengths.parse_run_config", parse)
    grid = clip_lengths(parse_run_config(configs.text_to_audio()))
    assert grid.multiple % 512 == 0 and 2048 % grid.multiple == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_every_kind_trains_on_batches_of_several_lengths(tmp_path, kind):
    config, shapes = KINDS[kind](), Shapes()
    module = wrapper(config)
    before = [weight.detach().clone() for weight in module.parameters()]
    fit(module, data(tmp_path, config).train_dataloader(), 4, shapes)
    assert shapes.lengths[0] == config["sample_size"] and len(set(shapes.lengths)) >= 3
    assert all(weight.isfinite().all() for weight in module.parameters())
    assert any(not torch.equal(weight, old) for weight, old in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("kind", ["diffusion_cond", "inpainting"])
def test_padding_of_a_batch_does_not_reach_the_loss(tmp_path, kind):
    config = KINDS[kind]()
    module = wrapper(config)
    for audio, metadata in data(tmp_path, config, drop_last=False).train_dataloader():
        batch = module.prepare((audio, metadata))
        assert batch.mask.shape[-1] == batch.latents.shape[-1] == audio.shape[-1] // 16
        real = torch.tensor([-(-int(item["padding_mask"].sum()) // 16) for item in metadata])
        assert torch.equal(batch.mask.sum(1), real) and not batch.mask.all()
        noisy = module.strategy.noising.draw(module.model, batch)
        output = torch.randn_like(noisy.target)
        loss = module.strategy.noising.denoising_loss(output, noisy, batch).loss
        loud = torch.where(batch.mask[:, None], output, torch.tensor(1e3))
        torch.testing.assert_close(module.strategy.noising.denoising_loss(loud, noisy, batch).loss, loss)
        assert module.strategy.noising.denoising_loss(output + 1, noisy, batch).loss != loss


def test_demos_and_trials_have_lengths_that_the_model_takes(tmp_path):
    module = data(tmp_path, configs.text_to_audio())
    for loader in (module.demo_clips(), module.trial_batches(3)):
        assert loader.grid == module.train_dataloader().grid and loader.grid.multiple == 16
        assert all(audio.shape[-1] % 16 == 0 for audio, _ in loader)
