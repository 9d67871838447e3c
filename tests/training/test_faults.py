"""Numbers that are not finite: the step is skipped on every rank, nothing that learns sees it, and too many of them end the run."""

import copy
import math
from dataclasses import replace
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from test_host import Recorder, Repeat, fit, loader, wrapper

from stable_audio_tools.training.checkpoint_io import newest_good_checkpoint
from stable_audio_tools.training.checkpoints import RunCheckpoint
from stable_audio_tools.training.step_guard import StepGuard
from stable_audio_tools.training.strategies.base import Update

import configs  # isort: skip

WARM = {"optimizer": {"type": "AdamW", "config": {"lr": 1e-3}}, "scheduler": {"type": "InverseLR", "config": {"warmup": 0.9}}}
KINDS = {
    "diffusion_cond": partial(configs.text_to_audio, optimizer_configs={"diffusion": WARM}, learning_rate=None),
    "autoencoder": configs.autoencoder,
    "lm": partial(configs.language_model, use_ema=True),
}


# ways to spoil the train steps whose numbers (from 0) are given


def spoil_input(module, batches, bad):
    """The second item of the batch has one NaN sample."""

    class Spoiled:
        def __iter__(self):
            for index, (audio, metadata) in enumerate(batches):
                audio = audio.clone()
                if index // module.accumulate_batches in bad and (index + 1) % module.accumulate_batches == 0:
                    audio[1, 0, 7] = math.nan
                yield audio, metadata

        def __len__(self):
            return len(batches)

    return Spoiled()


def spoil_loss(module, batches, bad):
    updates = module.strategy.updates

    def spoiled(model, batch, step):
        for update in updates(model, batch, step):
            factor = math.inf if step in bad else 1.0
            yield Update(update.player, replace(update.output, loss=update.output.loss * factor))

    module.strategy.updates = spoiled
    return batches


def spoil_gradient(module, batches, bad):
    for parameters in module.strategy.players(module.model).values():
        parameters[0].register_hook(lambda gradient: gradient * math.nan if module.train_step in bad else gradient)
    return batches


WAYS = {"input": spoil_input, "loss": spoil_loss, "gradient": spoil_gradient}


class Watch(pl.Callback):
    """What learns, before the first train step and after each: weights, averages, optimizers, schedulers; copied."""

    def __init__(self):
        self.states = []

    def look(self, module):
        optimizers = [optimizer.state_dict() for optimizer in module.trainer.optimizers]
        schedulers = [scheduler.state_dict() for scheduler in module._schedulers.values()]
        weights = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
        self.states.append(copy.deepcopy((weights, optimizers, schedulers)))

    def on_train_start(self, trainer, pl_module):
        self.look(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *rest):
        if pl_module._micro_batch == 0:
            self.look(pl_module)


def moved(before, after):
    """Whether anything differs between two states."""
    left, right = (torch.utils._pytree.tree_leaves(state) for state in (before, after))
    same = (
        [torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(left, right, strict=True)]
        if len(left) == len(right)
        else [False]
    )
    return not all(same)


def learnt(watch):
    return [moved(*pair) for pair in zip(watch.states, watch.states[1:], strict=False)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["diffusion_cond", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("autoencoder", "lm"))])
@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_and_nothing_that_learns_sees_it(kind, way, caplog):
    config = KINDS[kind]()
    module, watch, recorder = wrapper(config), Watch(), Recorder()
    fit(module, WAYS[way](module, loader(config), {2}), 5, watch, recorder)
    assert learnt(watch) == [True, True, False, True, True]
    assert (module.train_step, module.guard.skipped, module.guard.in_a_row) == (5, 1, 0)
    assert all(math.isfinite(float.fromhex(value)) for row in recorder.losses for value in row.values())
    assert [float.fromhex(row.get("train/skipped_steps", "0x0p0")) for row in recorder.losses] == [0, 0, 1, 1, 1]
    (message,) = [record.message for record in caplog.records if "is skipped" in record.message]
    assert message.startswith("step 3 is skipped: ")
    expected = {"input": "the audio of synthetic/", "loss": "loss = inf; batch: synthetic/", "gradient": "the gradient of "}
    assert expected[way] in message and message.count("synthetic/") == (1 if way == "input" else 4)


@pytest.mark.parametrize("way", ["loss", *(pytest.param(way, marks=pytest.mark.slow) for way in ("input", "gradient"))])
def test_a_bad_micro_batch_drops_the_whole_step(way):
    config = configs.text_to_audio()
    module, watch = wrapper(config), Watch()
    module.accumulate_batches = 4
    fit(module, WAYS[way](module, loader(config), {1}), 3, watch)
    assert learnt(watch) == [True, False, True]
    assert (module.train_step, module.guard.skipped) == (3, 1)


@pytest.mark.slow
def test_too_many_bad_steps_in_a_row_end_the_run_and_name_the_loss_the_step_and_the_files(tmp_path):
    config = KINDS["diffusion_cond"]()
    module = wrapper(config)
    module.guard.limit = 3
    watch = Watch()
    message = r"training diverged at step 7: 3 steps in a row were skipped, this one because loss = inf; batch: (synthetic/\S+,? ?){4}"
    with pytest.raises(FloatingPointError, match=message + r".* Lower the learning rate"):
        fit(module, spoil_loss(module, loader(config), {1, 4, 5, 6}), 9, watch, RunCheckpoint(tmp_path, every=1, keep=-1))
    assert learnt(watch) == [True, False, True, True, False, False]
    saved = torch.load(newest_good_checkpoint(tmp_path), weights_only=True)
    weights = {name: value for name, value in saved["state_dict"].items() if isinstance(value, torch.Tensor)}
    assert weights and not moved(weights, {name: watch.states[4][0][name] for name in weights})


@pytest.mark.slow
def test_a_limit_of_none_skips_on_and_the_default_ends_a_run_whose_weights_are_lost():
    config = configs.text_to_audio()
    module = wrapper(config)
    module.guard.limit = 0
    fit(module, spoil_loss(module, loader(config), set(range(15))), 15)
    assert (module.guard.skipped, module.guard.in_a_row) == (15, 15)

    lost = wrapper(config)
    with torch.no_grad():
        next(lost.diffusion.model.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="training diverged at step 10: 10 steps in a row"):
        fit(lost, loader(config), 15)


def test_the_count_of_bad_steps_goes_on_after_a_resume(tmp_path):
    config = configs.text_to_audio()
    module = wrapper(config)
    fit(module, spoil_loss(module, loader(config), {0, 2, 3}), 4, RunCheckpoint(tmp_path, every=0, keep=1))
    resumed = wrapper(config)
    resumed.guard.limit = 3
    with pytest.raises(FloatingPointError, match="at step 5: 3 steps in a row"):
        fit(resumed, spoil_loss(resumed, loader(config), {4}), 9, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.guard.skipped == 4


def test_a_bad_turn_of_one_player_leaves_no_gradient_for_the_next():
    config = configs.autoencoder()
    module = wrapper(config)
    fit(module, spoil_gradient(module, loader(config), {1}), 2)
    assert all(parameter.grad is None for parameter in module.parameters())


class Overflow(MixedPrecision):
    """float16 as on a GPU; Lightning takes bfloat16 on a CPU of itself."""

    def __init__(self, scale):
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


@pytest.mark.slow
def test_gradients_that_overflow_in_the_units_of_the_scaler_are_no_fault_but_nothing_moves():
    config = KINDS["diffusion_cond"]()
    module, watch = wrapper(config), Watch()
    precision = Overflow(2.0**40)
    audio, metadata = next(iter(loader(config)))
    fit(module, Repeat((audio[:1], metadata[:1])), 35, watch, plugins=[precision])
    steps = [moved(before[0], after[0]) for before, after in zip(watch.states, watch.states[1:], strict=False)]
    assert steps[0] is False and steps[-1] is True
    assert module.guard.skipped == 0 and precision.scaler.get_scale() == 2.0 ** (40 - steps.count(False))
    (scheduler,) = module._schedulers.values()
    (optimizer,) = module.trainer.optimizers
    stepped = {float(state["step"]) for state in optimizer.state.values()}
    assert scheduler.last_epoch == max(stepped) == sum(steps) and module.diffusion_ema.step == sum(steps)


def test_gradients_that_are_not_finite_at_any_scale_are_a_fault():
    config = configs.text_to_audio()
    module = wrapper(config)
    module.guard.limit = 2
    with pytest.raises(FloatingPointError, match=r"at step 5: 2 steps in a row were skipped, this one because the gradient of"):
        fit(module, spoil_gradient(module, loader(config), set(range(50))), 50, plugins=[Overflow(8.0)])


def test_the_terms_of_the_loss_are_named_before_their_sum_and_long_batches_are_cut():
    guard = StepGuard()
    guard.look_at_input((torch.zeros(10, 1, 4), [{"path": f"{index}.wav"} for index in range(10)]))
    nan = torch.tensor(math.nan)
    guard.take(nan, {"loss": nan, "loss_kl": nan, "loss_l1": torch.tensor(1.0), "latent_std": nan})
    assert guard.judge(guard.signs(torch.tensor(1.0)), loss_scale=1.0) == "bad"
    assert guard.explain({}).text == "loss_kl = nan; batch: 0.wav, 1.wav, 2.wav, 3.wav, 4.wav, 5.wav, 6.wav, 7.wav (+2)"


def test_only_the_micro_batch_whose_loss_is_bad_is_named():
    guard = StepGuard()
    for name, loss in (("a.wav", 1.0), ("b.wav", math.inf)):
        guard.look_at_input((torch.zeros(1, 1, 4), ({"path": name},)))
        guard.take(torch.tensor(loss), {})
    assert guard.explain({}).text == "loss = inf; batch: b.wav"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_items_whose_audio_is_not_finite_are_found_in_batches_of_any_form(value):
    signal = torch.zeros(3, 2, 8, dtype=torch.float16)
    signal[1, 1, 3] = value
    metadata = [{"path": "a"}, {"__key__": "b"}, {}]
    for form in (signal, signal[None]):
        guard = StepGuard()
        guard.look_at_input((form, metadata))
        assert guard.cause == "the audio of b is not finite"
    for sound in (torch.full((3, 2, 8), 60000.0, dtype=torch.float16), torch.zeros(3, 2, 8, dtype=torch.int64)):
        guard = StepGuard()
        guard.look_at_input((sound, metadata))
        assert guard.cause is None
