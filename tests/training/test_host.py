"""The host: what a step is, what moves, what does not, and that a stopped run goes on as if nothing had happened."""

import copy
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.dataset import create_dataloader_from_config
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.training import create_demo_callback_from_config, create_training_wrapper_from_config
from stable_audio_tools.training.checkpoints import RunCheckpoint, StopAtStep, StopAtTime
from stable_audio_tools.training.demos.base import DemoCallback, isolated_random_state

KINDS = {
    "diffusion_cond": configs.text_to_audio,
    "autoencoder": configs.autoencoder,
    "lm": partial(configs.language_model, use_ema=True),
}


def loader(config, batch_size=4):
    return create_dataloader_from_config(
        {"dataset_type": "synthetic", "num_items": 64},
        batch_size,
        sample_size=config["sample_size"],
        sample_rate=config["sample_rate"],
        audio_channels=config["audio_channels"],
        num_workers=0,
    )


def wrapper(config, seed=0):
    torch.manual_seed(seed)
    module = create_training_wrapper_from_config(config, create_model_from_config(config))
    module.log_every_n_steps = 1
    return module


def fit(module, batches, steps, *watchers, ckpt_path=None, **trainer):
    callbacks = [w for w in watchers if isinstance(w, pl.Callback)]
    runner = pl.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        logger=[w for w in watchers if isinstance(w, Logger)],
        callbacks=[StopAtStep(steps), *callbacks],
        enable_checkpointing=any(isinstance(c, RunCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        **trainer,
    )
    runner.fit(module, batches, ckpt_path=ckpt_path, weights_only=True)
    runner.limit_val_batches = 1.0
    return runner


class Repeat:
    """One batch, again and again."""

    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        return iter([self.batch])

    def __len__(self):
        return 1


class Recorder(Logger):
    """The training metrics of every step, as exact numbers."""

    name, version = "recorder", 0

    def __init__(self):
        super().__init__()
        self.losses = []

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.losses.append({k: float(v).hex() for k, v in metrics.items() if k.startswith("train/")})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_loss_goes_down_on_one_batch(kind):
    config = KINDS[kind]()
    module = wrapper(config)
    batch = next(iter(loader(config)))
    recorder = Recorder()
    fit(module, Repeat(batch), 60, recorder)
    name = "train/loss"
    values = [float.fromhex(r[name]) for r in recorder.losses if name in r]
    assert sum(values[-10:]) < 0.9 * sum(values[:10])


def test_accumulated_batches_are_one_step():
    config = configs.text_to_audio()
    module = wrapper(config)
    module.accumulate_batches = 4
    seen = []

    class Count(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            seen.append(pl_module.train_step)

    fit(module, loader(config), 2, Count())
    assert seen == [0, 0, 0, 1, 1, 1, 1, 2]


def test_accumulation_equals_one_large_batch():
    config = configs.text_to_audio(cfg_dropout_prob=0.0)
    audio, metadata = next(iter(loader(config, batch_size=4)))

    def gradients(module, parts):
        module.strategy.noising.sampler = _Fixed()
        grads = None
        for part in parts:
            prepared = module.prepare((audio[part], metadata[part]))
            torch.manual_seed(3)
            noise = torch.randn(4, *prepared.latents.shape[1:])[part]
            model = module.model
            t = torch.full((prepared.latents.shape[0],), 0.5)
            out = model(model.objective.add_noise(prepared.latents, noise, t), t, cond=prepared.conditions)
            ((out - model.objective.target(prepared.latents, noise, t)).square().mean() / len(parts)).backward()
        grads = [p.grad.clone() for p in module.model.parameters() if p.grad is not None]
        module.zero_grad()
        return grads

    module = wrapper(config)
    for whole, split in zip(gradients(module, [slice(0, 4)]), gradients(module, [slice(0, 2), slice(2, 4)]), strict=True):
        torch.testing.assert_close(whole, split, rtol=1e-4, atol=1e-6)


class _Fixed:
    def sample(self, batch, **_):
        return torch.full((batch,), 0.5)


def test_players_take_turns_and_each_turn_moves_its_own_weights():
    config = configs.autoencoder()
    module = wrapper(config)
    history = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, *rest):
            self.before = copy.deepcopy(pl_module.state_dict())

        def on_train_batch_end(self, trainer, pl_module, *rest):
            now = pl_module.state_dict()
            moved = {k.split(".")[0] for k, v in now.items() if isinstance(v, torch.Tensor) and not torch.equal(v, self.before[k])}
            history.append(
                moved - {"strategy"}
                if not any(
                    k.startswith("strategy.discriminator") and not torch.equal(v, self.before[k])
                    for k, v in now.items()
                    if isinstance(v, torch.Tensor)
                )
                else moved
            )

    fit(module, loader(config), 4, Watch())
    assert history == [{"autoencoder"}, {"strategy"}, {"autoencoder"}, {"strategy"}]


def test_ema_follows_the_step_it_belongs_to():
    config = configs.text_to_audio()
    module = wrapper(config)
    fit(module, loader(config), 1)
    online, averaged = module.diffusion.model.state_dict(), module.diffusion_ema.ema_model.state_dict()
    assert all(torch.equal(averaged[k], online[k]) for k in online)  # the first update copies: it came after the optimizer step
    fit(module, loader(config), 4)
    online = module.diffusion.model.state_dict()
    assert any(not torch.equal(averaged[k], online[k]) for k in online)
    assert module.sampling_model.model is module.diffusion_ema.ema_model
    assert module.sampling_model.conditioner is module.conditioner_ema.ema_model
    assert module.diffusion.model is not module.diffusion_ema.ema_model


@pytest.mark.parametrize(
    "stop",
    [5, pytest.param(16, marks=pytest.mark.slow), pytest.param(18, marks=pytest.mark.slow)],
    ids=["mid_epoch", "epoch_end", "second_epoch"],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(kind, stop, tmp_path):
    config = KINDS[kind]()
    straight = Recorder()
    whole = wrapper(config)
    fit(whole, loader(config), 21, straight)  # an epoch has 16 batches

    first, second = Recorder(), Recorder()
    fit(wrapper(config), loader(config), stop, first, RunCheckpoint(tmp_path, every=0, keep=1))
    resumed = wrapper(config, seed=9)
    fit(resumed, loader(config), 21, second, ckpt_path=tmp_path / "last.ckpt")
    assert first.losses + second.losses == straight.losses
    for key, value in whole.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.slow
def test_validation_is_the_same_twice():
    config = configs.text_to_audio()
    module = wrapper(config)
    trainer = fit(module, loader(config), 1)

    def validated():
        trainer.validate(module, loader(config), verbose=False)
        return {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}

    first = validated()
    torch.manual_seed(77)
    second = validated()
    assert first == second and "val/loss" in first and "val/loss_t_0.5" in first


def test_time_ends_a_run_at_a_step(tmp_path):
    module = wrapper(configs.text_to_audio())
    fit(module, loader(configs.text_to_audio()), 10_000, StopAtTime(0.005), RunCheckpoint(tmp_path, every=0, keep=1))
    assert 0 < module.train_step < 10_000
    assert (tmp_path / f"step={module.train_step:08d}.ckpt").exists()


def test_a_finished_run_that_is_resumed_trains_no_further(tmp_path):
    config = configs.text_to_audio()
    fit(wrapper(config), loader(config), 3, RunCheckpoint(tmp_path, every=0, keep=1))
    again = wrapper(config)
    fit(again, loader(config), 3, ckpt_path=tmp_path / "last.ckpt")
    assert again.train_step == 3


class Broken(DemoCallback):
    def render(self, module):
        raise RuntimeError("no sound today")


def test_a_demo_neither_kills_the_run_nor_moves_its_random_numbers(tmp_path, caplog):
    config = configs.text_to_audio(demo={"demo_every": 2, "demo_steps": 2, "demo_cond": [{"prompt": "a bell"}]})
    plain, with_demos = Recorder(), Recorder()
    fit(wrapper(config), loader(config), 4, plain)
    demos = create_demo_callback_from_config(config, folder=tmp_path / "demos")
    fit(wrapper(config), loader(config), 4, with_demos, demos, Broken(1, 8000, folder=tmp_path / "none"))
    assert plain.losses == with_demos.losses
    assert sorted(p.name for p in (tmp_path / "demos").iterdir()) == ["step_00000000", "step_00000002", "step_00000004"]
    assert {p.suffix for p in (tmp_path / "demos" / "step_00000004").iterdir()} == {".wav", ".png", ".json"}
    assert "the demo at step 1 failed; training goes on" in caplog.text


def test_isolated_random_state_restores_every_generator():
    import random

    import numpy as np

    before = (torch.rand(1), random.random(), np.random.rand())
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    with isolated_random_state():
        torch.rand(5), random.random(), np.random.rand()
    drawn = (torch.rand(1), random.random(), np.random.rand())
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    assert drawn == (torch.rand(1), random.random(), np.random.rand()) and before != drawn


def test_weights_that_are_not_finite_are_not_saved_even_if_no_loss_was_looked_at(tmp_path):
    config = configs.text_to_audio()
    module = wrapper(config)
    module.log_every_n_steps = 1000

    class Spoil(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            if pl_module.train_step == 2:
                with torch.no_grad():
                    next(pl_module.diffusion.model.parameters()).view(-1)[0] = float("inf")

    with pytest.raises(FloatingPointError, match=r"diverged before step 2: diffusion\.model\..* is not finite\. Lower the learning rate"):
        fit(module, loader(config), 4, Spoil(), RunCheckpoint(tmp_path, every=1, keep=-1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step=00000001.ckpt"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_factories_take_plain_dicts_and_leave_them_as_they_were(kind):
    from stable_audio_tools.training import autoencoders, diffusion, factory, lm

    config = KINDS[kind]()
    before = copy.deepcopy(config)
    module = factory.create_training_wrapper_from_config(config, create_model_from_config(config))
    demos = factory.create_demo_callback_from_config(config, demo_dl=loader(config))
    expected = {
        "diffusion_cond": (diffusion.DiffusionCondTrainingWrapper, diffusion.DiffusionCondDemoCallback),
        "autoencoder": (autoencoders.AutoencoderTrainingWrapper, autoencoders.AutoencoderDemoCallback),
        "lm": (lm.AudioLanguageModelTrainingWrapper, lm.AudioLanguageModelDemoCallback),
    }[kind]
    assert (type(module), type(demos)) == expected and demos.sample_rate == config["sample_rate"]
    assert config == before == module.model_config


def test_the_factories_say_what_is_missing():
    config = configs.text_to_audio()
    model = create_model_from_config(config)
    del config["training"]
    with pytest.raises(ConfigError, match="training config must be specified in model config"):
        create_training_wrapper_from_config(config, model)


def test_an_autoencoder_of_half_precision_has_demos_too():
    config = configs.autoencoder()
    module = wrapper(config).bfloat16()
    demos = create_demo_callback_from_config(config, demo_dl=loader(config))
    with torch.no_grad():
        made = demos.render(module)
    assert [demo.kind for demo in made] == ["original", "reconstruction"] * 2
    assert all(demo.audio.dtype == torch.float32 and demo.audio.shape == (2, 2048) for demo in made)
