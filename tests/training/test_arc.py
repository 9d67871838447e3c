"""ARC post-training: who learns from what, on which numbers, what is refused, and that runs resume, export and generate."""

import copy
import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from arc_rule import fill, wave
from configs import inpainting, text_to_audio
from test_host import Recorder, Repeat, fit, loader, wrapper
from torch.nn import functional as F

from stable_audio_tools.cli.main import main
from stable_audio_tools.configs.errors import ConfigError, path_text
from stable_audio_tools.diffusion.grids import logsnr_grid, schedule
from stable_audio_tools.diffusion.samplers import find_sampler, make_field
from stable_audio_tools.inference.generation import generate_diffusion_cond
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import CheckpointError, load_into, load_weights, save_model
from stable_audio_tools.models.pretrained import get_pretrained_model
from stable_audio_tools.training import create_training_wrapper_from_config
from stable_audio_tools.training.arc import ARCTrainingWrapper
from stable_audio_tools.training.checkpoints import RunCheckpoint
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.plan import make_plan
from stable_audio_tools.training.strategies.arc import NoiseLevels, exchange
from stable_audio_tools.training.strategies.base import LatentBatch

REFERENCE = Path(__file__).parents[1] / "reference"
OPTIMIZER = {"optimizer": {"type": "AdamW", "config": {"lr": 1e-3}}}
HEADS = {"conv": {"type": "conv"}, "convnext": {"type": "convnext", "config": {"channels": 8, "c_mults": [1, 2], "strides": [2, 4]}}}
ALL_LOSSES = {"contrastive": True, "include_grad_penalties": True}


def arc(head="convnext", base=text_to_audio, discriminator=None, training=None, **section):
    """A tiny run; without further keys it has no teacher."""
    config = base()
    config["training"] = {
        "optimizer_configs": {"diffusion": OPTIMIZER, "discriminator": OPTIMIZER},
        "demo": config["training"]["demo"],
        **({"inpainting": config["training"]["inpainting"]} if "inpainting" in config["training"] else {}),
        "arc": {
            "use_model_as_discriminator": True,
            "discriminator": {"dit_hidden_layer": 0, **HEADS[head], **(discriminator or {})},
            **section,
        },
        **(training or {}),
    }
    return config


@pytest.fixture
def teacher(tmp_path):
    """Keys of a teacher and its warm-up."""

    def make(config=None, **warmup):
        config = config or text_to_audio()
        torch.manual_seed(5)
        save_model(tmp_path / "teacher.safetensors", create_model_from_config(config), config)
        warmup = {"warmup_steps": 3, "refresh_rate": 2, "sampling_steps": 3, "cfg": 2.0, **warmup}
        return {"use_model_as_teacher": True, "teacher_model_ckpt": str(tmp_path / "teacher.safetensors"), "ode_warmup": warmup}

    return make


def randomized(module):
    """Networks start as the identity, where nothing depends on anything; here every weight says something."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter) / max(parameter[0].numel() if parameter.ndim > 1 else 1, 1) ** 0.5)
    return module


def one_batch(config, size=4):
    return next(iter(loader(config, size)))


def updates(module, batch, step):
    """The updates of a train step, with gradients taken as the host does."""
    module.train_step = step
    module.zero_grad(set_to_none=True)
    found = []
    for update in module.strategy.updates(module.model, module.prepare(batch), step):
        update.output.loss.backward()
        found.append(update)
    return found


def with_gradient(module):
    return {name for name, parameter in module.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}


# numbers


@pytest.mark.parametrize("name", ["conv_prepend", "convnext_adaLN"])
@pytest.mark.slow
def test_losses_and_gradients_are_the_recorded_ones(name, tmp_path):
    case = json.loads((REFERENCE / "arc_losses.json").read_text())[name]
    config = case["config"]
    model = create_model_from_config(config)
    fill(model, 1)
    save_model(tmp_path / "teacher.safetensors", model, config)
    config["training"]["arc"]["teacher_model_ckpt"] = str(tmp_path / "teacher.safetensors")
    fill(model, 3)
    module = create_training_wrapper_from_config(config, model).train()
    discriminator = module.strategy.discriminator
    backbone = create_model_from_config(config)  # the rule counts the layers that a discriminator does without
    fill(backbone, 2)
    discriminator.backbone.load_state_dict(backbone.state_dict(), strict=False)
    fill(discriminator.head, 4)

    metadata = tuple({"prompt": value, "secs": float(value)} for value in (1, 2, 3, 5))
    for kind, step in {"warmup": 0, "warmup_again": 1, "generator": 100, "discriminator": 101}.items():
        module.train_step = step
        module.zero_grad()
        batch = module.prepare((wave((4, 8, 128), 1), metadata))
        torch.manual_seed(0)
        (update,) = (taken for taken in module.strategy.updates(model, batch, step) if taken.output.loss.backward() is None)
        recorded = case["steps"][kind]
        assert update.player == ("discriminator" if kind == "discriminator" else "diffusion")
        assert update.output.loss.item() == pytest.approx(recorded["loss"], rel=1e-4)
        trained = module.strategy.players(model)[update.player]
        norm = sum(p.grad.double().square().sum() for p in trained if p.grad is not None) ** 0.5
        assert float(norm) == pytest.approx(recorded["grad_norm"], rel=1e-3)
    ours = {"relativistic": "train/dis_loss", "contrastive": "train/contrastive_loss_dis"}
    for term, key in ours.items():
        assert float(update.output.logs[f"loss_{term}"]) == pytest.approx(recorded[key], rel=1e-4)
    for term, key in {"penalty_real": "r1_penalty", "penalty_fake": "r2_penalty"}.items():
        assert float(update.output.logs[f"loss_{term}"]) == pytest.approx(0.5 * recorded[key], rel=1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_losses_are_their_formulas(head):
    weights = {"generator": 0.7, "discriminator": 1.3, "contrastive": 0.6}
    config = arc(
        head, discriminator={**ALL_LOSSES, "weights": weights}, noise_dist={"generator": "logit_normal", "discriminator": "one_shot"}
    )
    config["training"]["cfg_dropout_prob"] = 0.0
    module = randomized(wrapper(config)).train()
    strategy, model, judge = module.strategy, module.model, module.strategy.discriminator
    audio, metadata = one_batch(config)
    for step in (0, 1):
        module.train_step = step
        batch = module.prepare((audio, metadata))
        torch.manual_seed(1)
        (update,) = strategy.updates(model, batch, step)

        torch.manual_seed(1)  # the same draws, in the order of the definitions
        x0 = batch.latents
        t = strategy.generator_levels.draw(x0)[:, None, None]
        x_t = (1 - t) * x0 + t * torch.randn_like(x0)
        fake = x_t - t * model(x_t, t[:, 0, 0], cond=batch.conditions)
        noise, level = torch.randn_like(x0), torch.ones(4)
        conditions = judge.backbone.conditioner(metadata, "cpu")
        real, made = judge(0 * x0 + noise, level, conditions), judge(0 * fake + noise, level, conditions)
        if step == 0:
            expected = 0.7 * F.softplus(real - made).mean()
            torch.testing.assert_close(update.output.logs["std_data"], x0.std())  # which the peer only annotates
        else:
            shifted = judge.backbone.conditioner(
                [{**item, "prompt": metadata[(i + 1) % 4]["prompt"]} for i, item in enumerate(metadata)], "cpu"
            )
            contrast = F.softplus(judge(noise, level, shifted) - real).mean()
            bumps = [(judge(noise + 0.05 * torch.randn_like(x0), level, conditions) - real).square().sum((1, 2)).mean() for _ in range(2)]
            expected = 1.3 * F.softplus(made - real).mean() + 1.3 * 0.6 * contrast + sum(bumps) / 2
        torch.testing.assert_close(update.output.loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("uniform", 0, 1),
        ("logit_normal", 0, 1),
        ("trunc_logit_normal", 0, 1),
        ("one_shot", 1, 1),
        ("denoised", 0, 0),
        ("logsnr_uniform", 0.119, 0.998),
    ],
)
def test_noise_levels(name, low, high):
    levels = NoiseLevels(name)
    levels.start(seed=3, rank=0)
    drawn = levels.draw(torch.zeros(512, 1, 8))
    assert drawn.dtype == torch.float32 and low <= drawn.min() and drawn.max() <= high
    again = NoiseLevels(name)
    again.load_state_dict(levels.state_dict())
    state = torch.get_rng_state()
    following = levels.draw(torch.zeros(8, 1, 8))
    torch.set_rng_state(state)
    assert torch.equal(again.draw(torch.zeros(8, 1, 8)), following)


# who meets whose conditions


@pytest.mark.parametrize("size", range(2, 9))
def test_no_item_is_given_a_condition_equal_to_its_own(size):
    for seed in range(200):
        values = torch.randint(0, 1 + seed % 5, (size,), generator=torch.Generator().manual_seed(seed)).tolist()
        order, differs = exchange(values)
        assert sorted(order) == list(range(size))
        assert differs == [values[i] != values[order[i]] for i in range(size)]
        most = max(Counter(values).values())
        assert sum(differs) == (size if 2 * most <= size else 2 * (size - most))


def test_distinct_conditions_are_a_shift_by_one():
    assert exchange(["a", "b", "c", "d"]) == ([1, 2, 3, 0], [True] * 4)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_item_is_contrasted_with_another_prompt_and_metadata_stay(size):
    """Rolled in place, half of a batch of two would be contrasted with itself, and the prompts would stay changed."""
    config = arc(discriminator={"contrastive": True})
    module = randomized(wrapper(config))
    audio, metadata = one_batch(config, size)
    metadata = tuple({**item, "prompt": f"sound {index}"} for index, item in enumerate(metadata))
    before = copy.deepcopy(metadata)
    judged = []

    def remember(_, args):
        judged.append(args[2]["prompt"].tensor.detach())

    module.strategy.discriminator.register_forward_pre_hook(remember)
    (update,) = updates(module, (audio, metadata), 1)
    own, others = judged[0], judged[2]
    assert all(not torch.equal(own[i], others[i]) for i in range(size))
    assert {tuple(row.flatten().tolist()) for row in own} == {tuple(row.flatten().tolist()) for row in others}
    assert "loss_contrastive" in update.output.logs
    assert [{k: v for k, v in item.items() if k != "padding_mask"} for item in metadata] == [
        {k: v for k, v in item.items() if k != "padding_mask"} for item in before
    ]


def classes(**training):
    """A model that knows a class and a duration, and no prompt."""
    config = text_to_audio()
    config["model"]["conditioning"]["configs"] = [
        {"id": "genre", "type": "list", "config": {"options": ["jazz", "rock"]}},
        {"id": "seconds_total", "type": "number", "config": {"min_val": 0, "max_val": 10}},
    ]
    config["model"]["diffusion"]["cross_attention_cond_ids"] = ["genre"]
    config["model"]["diffusion"]["global_cond_ids"] = ["seconds_total"]
    return config


@pytest.mark.parametrize(
    ("ids", "exchanged"), [(None, {"genre", "seconds_total"}), (["genre"], {"genre"}), (["seconds_total"], {"seconds_total"})]
)
@pytest.mark.slow
def test_any_condition_can_be_exchanged(ids, exchanged):
    config = arc(base=classes, discriminator={"contrastive": True, **({"contrastive_ids": ids} if ids else {})})
    module = randomized(wrapper(config))
    metadata = tuple(
        {"genre": genre, "seconds_total": total} for genre, total in (("jazz", 1.0), ("jazz", 2.0), ("rock", 3.0), ("rock", 4.0))
    )
    judged = []
    module.strategy.discriminator.register_forward_pre_hook(lambda _, args: judged.append(args[2]))
    updates(module, (one_batch(config)[0], metadata), 1)
    own, others = judged[0], judged[2]
    changed = {name for name in own if not torch.equal(own[name].tensor, others[name].tensor)}
    assert changed == exchanged
    for item in range(4):
        assert any(not torch.equal(own[name].tensor[item], others[name].tensor[item]) for name in exchanged)


def test_equal_prompts_are_left_out_of_the_contrastive_loss():
    config = arc(discriminator={"contrastive": True})
    module = randomized(wrapper(config))
    audio, metadata = one_batch(config)
    same = tuple({**item, "prompt": "one sound"} for item in metadata)
    (update,) = updates(module, (audio, same), 1)
    assert float(update.output.logs["loss_contrastive"]) == 0


def test_a_batch_of_one_has_no_contrast_and_says_so_once(caplog):
    config = arc(discriminator={"contrastive": True})
    module = wrapper(config)
    audio, metadata = one_batch(config, 1)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            (update,) = updates(module, (audio, metadata), 1)
    assert "loss_contrastive" not in update.output.logs and update.output.loss.isfinite()
    assert caplog.text.count("the contrastive loss is left out of batches of one item") == 1


# who learns


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.slow
def test_gradients_reach_the_player_whose_turn_it_is_and_nobody_else(head, recompute, teacher):
    config = arc(head, discriminator=ALL_LOSSES, **teacher())
    config["model"]["diffusion"]["config"]["activation_checkpointing"] = recompute
    module = randomized(wrapper(config))
    batch = one_batch(config)
    for step, player in ((0, "diffusion"), (4, "diffusion"), (5, "discriminator")):
        (update,) = updates(module, batch, step)
        found = with_gradient(module)
        assert update.player == player and update.output.loss.isfinite()
        if player == "diffusion":
            assert found and all(name.startswith("diffusion.") for name in found)
            assert {"diffusion.model.model.transformer.project_in.weight", "diffusion.model.model.preprocess_conv.weight"} <= found
        else:
            assert found and all(name.startswith("strategy.discriminator.") for name in found)
            assert any(".head." in name for name in found) and any(".backbone.model." in name for name in found)
            assert any(".backbone.conditioner." in name for name in found)
    assert all(p.requires_grad for p in module.strategy.discriminator.head.parameters())  # frozen on the other's turn only


def test_the_generator_is_only_asked_on_the_discriminators_turn():
    module = wrapper(arc())
    batch = one_batch(arc())
    graphs = []
    module.diffusion.model.register_forward_hook(lambda m, args, output: graphs.append(output.requires_grad))
    module.diffusion.conditioner.register_forward_hook(lambda m, args, output: graphs.append(output["prompt"].tensor.requires_grad))
    updates(module, batch, 1)
    assert graphs == [False, False]
    updates(module, batch, 2)
    assert graphs[2:] == [True, True]


class Watch(pl.Callback):
    """Which parts moved in each step."""

    def __init__(self, module):
        self.moved = []
        self.parts = {"diffusion": module.diffusion, "discriminator": module.strategy.discriminator, "ema": module.diffusion_ema.ema_model}
        if module.strategy.warmup is not None:
            self.parts["teacher"] = module.strategy.warmup.teacher.module

    def state(self):
        return {name: copy.deepcopy(part.state_dict()) for name, part in self.parts.items()}

    def on_train_batch_start(self, *rest):
        self.before = self.state()

    def on_train_batch_end(self, *rest):
        now = self.state()
        self.moved.append({part for part in now if any(not torch.equal(now[part][key], self.before[part][key]) for key in now[part])})


RUNS = {
    "conv": {"head": "conv"},
    "convnext, all losses": {"head": "convnext", "discriminator": ALL_LOSSES},
    "conv, all losses, inpainting": {"head": "conv", "base": inpainting, "discriminator": ALL_LOSSES},
}


@pytest.mark.slow
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm-up"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_moves_each_player_on_its_turn(name, warm, teacher):
    run = dict(RUNS[name])
    config = arc(**run, **(teacher((run.get("base") or text_to_audio)()) if warm else {}))
    config["training"]["clip_grad_norm"] = 1.0
    module = wrapper(config)
    assert isinstance(module, ARCTrainingWrapper)
    watch, recorder = Watch(module), Recorder()
    trainer = fit(module, loader(config), 6, watch, recorder)
    generator, discriminator = {"diffusion", "ema"}, {"discriminator"}
    first = [generator, generator, generator] if warm else [generator, discriminator, generator]
    assert watch.moved == [*first, discriminator, generator, discriminator]
    assert all(float.fromhex(value) == float.fromhex(value) for record in recorder.losses for value in record.values())
    assert "train/grad_norm_discriminator" in recorder.losses[-1] and "train/loss_discriminator" in recorder.losses[-1]
    trainer.validate(module, loader(config), verbose=False)
    assert trainer.callback_metrics["val/loss"].isfinite()


@pytest.mark.slow
def test_a_discriminator_learns_to_tell_generated_items():
    config = arc(noise_dist={"generator": "one_shot", "discriminator": "denoised"})
    module = wrapper(config)
    recorder = Recorder()
    strategy = module.strategy
    strategy.moves_model = lambda step: False  # its opponent stands still
    fit(module, Repeat(one_batch(config)), 40, recorder)
    losses = [float.fromhex(record["train/loss_discriminator"]) for record in recorder.losses]
    assert losses[-1] < 0.5 * losses[0]


# the warm-up


def test_trajectories_end_where_the_sampler_ends_and_are_trained_on_again(teacher):
    config = arc(**teacher(refresh_rate=3, sampling_steps=4))
    module = randomized(wrapper(config))
    warmup, model = module.strategy.warmup, module.model
    audio, metadata = one_batch(config)
    batch = module.prepare((audio, metadata))
    torch.manual_seed(7)
    warmup.loss(model, batch)
    made = warmup.trajectories
    assert made.x.shape == (4, *batch.latents.shape) and made.t[0] == 1

    torch.manual_seed(7)
    start, asked = torch.randn_like(batch.latents), warmup.teacher.module
    conditions = asked.conditioner(metadata, "cpu")
    field = make_field(lambda x, t: asked(x, t, cond=conditions, cfg_scale=2.0), asked.objective)
    with torch.no_grad():
        expected = find_sampler("dpmpp", asked.objective).sample(field, start, logsnr_grid(4))
    torch.testing.assert_close(made.target, expected)
    assert torch.equal(made.x[0], start)

    other = module.prepare(one_batch(config, 2))  # a smaller batch, such as the last of an epoch
    warmup.loss(model, other)
    assert warmup.trajectories is made
    warmup.loss(model, other)
    warmup.loss(model, other)
    assert warmup.trajectories is not made and warmup.trajectories.x.shape[1] == 2


def test_a_teacher_with_a_shift_is_sampled_where_it_was_trained(teacher):
    """As in generation; the peer's warm-up takes the grid of a model without one."""
    config = text_to_audio()
    config["model"]["diffusion"]["distribution_shift_options"] = {"type": "constant", "shift": 3.0}
    module = wrapper(arc(base=lambda: copy.deepcopy(config), **teacher(config, sampling_steps=5)))
    asked = module.strategy.warmup.teacher.module
    module.strategy.warmup.loss(module.model, module.prepare(one_batch(config)))
    expected = schedule(asked.objective, 5, length=128, shift=asked.dist_shift)[:-1]
    torch.testing.assert_close(module.strategy.warmup.trajectories.t, expected.float())
    assert not torch.allclose(expected, logsnr_grid(5)[:-1])


def test_a_batch_of_one_keeps_its_dimension(teacher):
    config = arc(**teacher())
    module = wrapper(config)
    (update,) = updates(module, one_batch(config, 1), 0)
    assert update.output.loss.isfinite() and module.strategy.warmup.trajectories.points()[0].shape == (1, 16, 128)


@pytest.mark.slow
@pytest.mark.parametrize("base", [text_to_audio, inpainting])
def test_the_student_comes_nearer_to_the_teacher_in_20_steps(teacher, base):
    config = arc(base=base, **teacher(base(), warmup_steps=20, refresh_rate=100))
    for group in config["training"]["optimizer_configs"].values():
        group["optimizer"]["config"] = {"lr": 5e-3}
    config = copy.deepcopy(config)
    recorder = Recorder()
    fit(wrapper(config), Repeat(one_batch(config)), 20, recorder)
    losses = [float.fromhex(record["train/loss_ode_warmup"]) for record in recorder.losses]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_teacher_stays_as_it_was_made_and_out_of_checkpoints(teacher, tmp_path):
    config = arc(**teacher())
    module = wrapper(config)
    asked = module.strategy.warmup.teacher.module
    fit(module, loader(config), 2, RunCheckpoint(tmp_path / "run", every=0, keep=1))
    assert not any(part.training for part in asked.modules())
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    assert not [key for key in state if "teacher" in key]
    assert [key for key in state if key.startswith("strategy.discriminator.head.")]


@pytest.mark.slow
@pytest.mark.parametrize("base", [text_to_audio, inpainting])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_stopped_run_goes_on_bit_for_bit(stop, base, teacher, tmp_path):
    trimmed = {"trim_config": {"trim_prob": 0.5}}
    config = arc("convnext", base=base, discriminator=ALL_LOSSES, training=trimmed, **teacher(base()))
    straight, first, second = Recorder(), Recorder(), Recorder()
    whole = wrapper(config)
    fit(whole, loader(config), 7, straight)
    fit(wrapper(config), loader(config), stop, first, RunCheckpoint(tmp_path / "run", every=0, keep=1))
    resumed = wrapper(config, seed=9)
    fit(resumed, loader(config), 7, second, ckpt_path=tmp_path / "run" / "last.ckpt")
    assert first.losses + second.losses == straight.losses
    state = resumed.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.state_dict().items() if isinstance(value, torch.Tensor))


# trimming


def long_audio():
    config = text_to_audio()
    config["sample_size"] = 16 * 400
    config["model"]["diffusion"]["config"]["patch_size"] = 5
    return config


def test_trimming_cuts_to_the_real_frames_of_an_item_masks_too():
    config = arc(base=long_audio, training={"trim_config": {"trim_prob": 1.0}})
    module = wrapper(config)
    real = (180, 301, 90, 400)
    metadata = tuple({"prompt": "x", "padding_mask": torch.arange(6400) < 16 * frames} for frames in real)
    seen = set()
    for step in range(40):
        module.train_step = step
        batch = module.prepare((torch.randn(4, 1, 6400), metadata))
        assert batch.mask.shape == (4, batch.latents.shape[-1])
        seen.add(batch.latents.shape[-1])
    assert seen == {180, 305, 130, 400}  # up to whole patches, at least 128 frames
    assert metadata[2]["padding_mask"].shape == (6400,)


def test_trimmed_clips_fit_both_networks():
    judge = long_audio()
    judge["model"]["diffusion"]["config"]["patch_size"] = 4
    del judge["training"]
    trim = {"trim_config": {"trim_prob": 1.0}}
    config = arc(base=long_audio, training=trim, use_model_as_discriminator=False, discriminator_base_model=judge)
    module = wrapper(config)
    metadata = ({"prompt": "x", "padding_mask": torch.arange(6400) < 16 * 131},) * 2
    for step in (0, 1):
        (update,) = updates(module, (torch.randn(2, 1, 6400), metadata), step)
        assert update.output.loss.isfinite()
    assert module.prepare((torch.randn(2, 1, 6400), metadata)).latents.shape[-1] == 140


def test_trimming_waits_for_the_end_of_the_warm_up_and_spares_validation(teacher):
    config = arc(base=long_audio, training={"trim_config": {"trim_prob": 1.0}}, **teacher(long_audio()))
    module = wrapper(config)
    batch = (torch.randn(2, 1, 6400), ({"prompt": "x", "padding_mask": torch.arange(6400) < 2400},) * 2)
    lengths = []
    for step in (0, 2, 3):
        module.train_step = step
        lengths.append(module.prepare(batch).latents.shape[-1])
    assert lengths == [400, 400, 150]
    assert module.latent_batch(batch, module.model).latents.shape[-1] == 400


def test_a_share_of_batches_is_trimmed():
    module = wrapper(arc(base=long_audio, training={"trim_config": {"trim_prob": 0.3}}))
    module.strategy.start(seed=4, rank=0)
    latents = torch.zeros(1, 16, 400)
    batch = LatentBatch(latents, torch.arange(400)[None] < 200, {}, ({"padding_mask": None},))
    cut = [module.strategy.trimmed(batch, step).latents.shape[-1] < 400 for step in range(2000)]
    assert 0.27 < sum(cut) / 2000 < 0.33
    assert all(module.strategy.trimmed(replace(batch, metadata=({},)), step).latents.shape[-1] == 400 for step in range(20))


# weights


def test_the_backbone_starts_as_the_model_in_training_or_from_a_file(tmp_path):
    config = arc()
    torch.manual_seed(0)
    model = create_model_from_config(config)
    module = create_training_wrapper_from_config(config, model)
    backbone, key = module.strategy.discriminator.backbone, "model.model.transformer.layers.0.self_attn.to_qkv.weight"
    assert torch.equal(backbone.state_dict()[key], model.state_dict()[key])
    assert backbone.get_parameter(key).data_ptr() != model.get_parameter(key).data_ptr()

    other = create_model_from_config(config)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "base.ckpt")  # as the peer's unwrapped models are
    config["training"]["arc"]["discriminator_base_ckpt"] = str(tmp_path / "base.ckpt")
    module = create_training_wrapper_from_config(config, model)
    assert torch.equal(module.strategy.discriminator.backbone.state_dict()[key], other.state_dict()[key])


def test_a_teacher_from_a_training_checkpoint_is_its_average(tmp_path, teacher):
    plain = text_to_audio()
    trained = wrapper(plain)
    fit(trained, loader(plain), 3, RunCheckpoint(tmp_path / "run", every=0, keep=1))
    config = arc(**{**teacher(), "teacher_model_ckpt": str(tmp_path / "run" / "last.ckpt")})
    found = wrapper(config).strategy.warmup.teacher.module.state_dict()
    expected = trained.sampling_model.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_a_teacher_of_another_config(teacher):
    big = text_to_audio()
    big["model"]["diffusion"]["config"]["embed_dim"] = 64
    keys = teacher(big)
    del keys["use_model_as_teacher"]
    del big["training"]
    module = wrapper(arc(**keys, teacher_model=big))
    assert module.strategy.warmup.teacher.module.model.model.params.embed_dim == 64
    (update,) = updates(module, one_batch(arc()), 0)
    assert update.output.loss.isfinite()


def test_after_the_warm_up_nothing_of_the_teacher_is_kept(teacher, tmp_path):
    module = wrapper(arc(**teacher(warmup_steps=2)))
    fit(module, loader(arc()), 3, RunCheckpoint(tmp_path / "run", every=0, keep=1))
    assert module.strategy.warmup.teacher is None and module.strategy.warmup.trajectories is None
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    assert list(state["strategy.warmup._extra_state"]) == ["uses"]


@pytest.mark.slow
def test_checkpoints_of_arc_trainings_hold_a_plain_model(tmp_path):
    """Ours, and the peer's with its own names for the parts."""
    config = arc()
    module = wrapper(config)
    fit(module, loader(config), 3, RunCheckpoint(tmp_path / "run", every=0, keep=1))
    model = module.sampling_model.state_dict()
    parts = {"diffusion": module.diffusion, "diffusion_ema.ema_model": module.diffusion_ema.ema_model, "teacher_model": module.diffusion}
    parts |= {"discriminator": module.strategy.discriminator.backbone, "discriminator_head": module.strategy.discriminator.head}
    peer = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    torch.save({"state_dict": peer, "pytorch-lightning_version": "2.1.0"}, tmp_path / "peer.ckpt")
    for path in (tmp_path / "run" / "last.ckpt", tmp_path / "peer.ckpt"):
        plain = create_model_from_config(text_to_audio())
        load_into(plain, load_weights(path))
        averaged = {key: value for key, value in model.items() if key.startswith("model.")}
        assert averaged and all(torch.equal(plain.state_dict()[key], value) for key, value in averaged.items())


def test_weights_that_do_not_fit_or_are_not_there_are_said(tmp_path, teacher):
    big = text_to_audio()
    big["model"]["diffusion"]["config"]["embed_dim"] = 64
    with pytest.raises(CheckpointError, match="does not fit this model"):
        wrapper(arc(**teacher(big)))
    with pytest.raises(CheckpointError, match=r"nowhere\.ckpt"):
        wrapper(arc(discriminator_base_ckpt=str(tmp_path / "nowhere.ckpt")))


def test_a_teacher_without_a_warm_up_is_not_loaded(caplog):
    module = wrapper(arc(use_model_as_teacher=True, teacher_model_ckpt="not/read.ckpt"))
    assert module.strategy.warmup is None and "the teacher has no effect without an ode_warmup" in caplog.text


# what is refused


def v_model(config):
    config["model"]["diffusion"]["diffusion_objective"] = "v"


def short(config):
    config["sample_size"] = 32 * 16
    config["training"]["arc"]["discriminator"] = {"dit_hidden_layer": 0, "type": "conv"}


def narrow(config):
    config["model"]["diffusion"]["config"]["embed_dim"] = 48
    config["training"]["arc"]["discriminator"] = {"dit_hidden_layer": 0, "type": "conv"}


def section(**keys):
    return lambda config: config["training"]["arc"].update(keys)


def training(**keys):
    return lambda config: config["training"].update(keys)


def head(**keys):
    return lambda config: config["training"]["arc"]["discriminator"].update(keys)


def only_diffusion(config):
    del config["training"]["optimizer_configs"]["discriminator"]


def other_latents():
    config = text_to_audio()
    config["model"]["io_channels"] = config["model"]["diffusion"]["config"]["io_channels"] = 32
    config["model"]["pretransform"]["config"]["patch_size"] = 32
    del config["training"]
    return config


def masked():
    config = inpainting()
    del config["training"]
    return config


ARC = "training.arc"
REFUSED = [
    (
        section(use_model_as_teacher=True),
        f"{ARC}.teacher_model_ckpt",
        "teacher_model_ckpt must be specified if teacher_model is specified",
        "name the file",
    ),
    (section(teacher_model_ckpt="t.ckpt"), f"{ARC}.teacher_model_ckpt", "no effect without a teacher", "use_model_as_teacher"),
    (section(ode_warmup={"warmup_steps": 5}), f"{ARC}.ode_warmup", "the warm-up needs a teacher", "use_model_as_teacher"),
    (
        section(use_model_as_discriminator=False),
        f"{ARC}.use_model_as_discriminator",
        "the discriminator needs a backbone",
        "set it to true",
    ),
    (section(discriminator_base_model=other_latents()), f"{ARC}.use_model_as_discriminator", "names another backbone", "keep one"),
    (
        section(use_model_as_discriminator=False, discriminator_base_model=other_latents()),
        f"{ARC}.discriminator_base_model.model.io_channels",
        "io_channels is 32, but that of the model in training is 16",
        "same latents",
    ),
    (
        section(use_model_as_discriminator=False, discriminator_base_model=masked()),
        f"{ARC}.discriminator_base_model.model.diffusion.input_concat_ids",
        "the discriminator takes masked input",
        "inpainting",
    ),
    (section(noise_dist={"generator": "cosine"}), f"{ARC}.noise_dist.generator", "cosine", ""),
    (section(ode_warmup={"steps": 5}), f"{ARC}.ode_warmup.steps", "unknown key", ""),
    (v_model, "model.diffusion.diffusion_objective", "arc trains flows, and this is v", "rf_denoiser"),
    (head(dit_hidden_layer=2), f"{ARC}.discriminator.dit_hidden_layer", "the backbone has 2 layers", "0 to 1"),
    (short, "sample_size", "takes at least 64 tokens, and 512 samples make 32", "raise sample_size to 1024"),
    (narrow, "model.diffusion.config.embed_dim", "32 groups, which 48 features are no multiple of", "convnext"),
    (
        head(contrastive=True, contrastive_ids=["promt"]),
        f"{ARC}.discriminator.contrastive_ids[0]",
        "no condition of the discriminator",
        "prompt",
    ),
    (only_diffusion, "training.optimizer_configs", 'missing key "discriminator"', "every player"),
    (training(mask_padding=True), "training.mask_padding", "no effect with arc", "remove it"),
    (training(p_one_shot=0.5), "training.p_one_shot", "no effect with arc", "remove it"),
    (training(strategy={"name": "supervised"}), "training.strategy", "no effect with arc", "remove it"),
    (training(trim_config={"type": "longest"}), "training.trim_config.type", "random_item", ""),
]


@pytest.mark.parametrize(("change", "path", "message", "fix"), REFUSED, ids=[f"{row[1]}: {row[2][:30]}" for row in REFUSED])
def test_what_cannot_work_is_refused_before_a_weight_exists(change, path, message, fix):
    config = arc()
    change(config)
    with pytest.raises(ConfigError) as error:
        parse_run_config(config)
    found = {path_text(problem.path): problem for problem in error.value.problems}
    assert path in found, error.value
    assert message in found[path].message and fix in found[path].fix


def test_settings_of_arc_without_arc_are_refused():
    config = text_to_audio(trim_config={"trim_prob": 0.5})
    config["training"]["optimizer_configs"] = {"diffusion": OPTIMIZER, "discriminator": OPTIMIZER}
    with pytest.raises(ConfigError) as error:
        parse_run_config(config)
    assert {path_text(p.path) for p in error.value.problems} == {"training.trim_config", "training.optimizer_configs.discriminator"}


def test_a_network_without_layers_of_tokens_is_no_backbone():
    adp = json.loads((REFERENCE / "adp_cond.json").read_text())
    adp["model"]["diffusion"]["diffusion_objective"] = "rectified_flow"
    adp["training"] = arc()["training"] | {"demo": {"demo_every": 10}}
    with pytest.raises(ConfigError, match="judges features of a dit, not of adp"):
        parse_run_config(adp)


def test_a_published_run_may_carry_settings_without_effect():
    config = arc(sampling={"steps": 8}, training={"timestep_sampler": "trunc_logit_normal"})
    config["training"]["arc"]["discriminator"]["config"]["loss_type"] = "relativistic"
    assert parse_run_config(config).training.arc.discriminator.type == "convnext"


def test_learning_rate_alone_stands_for_both_optimizers():
    config = arc()
    del config["training"]["optimizer_configs"]
    config["training"]["learning_rate"] = 1e-4
    module = wrapper(config)
    assert set(module.optimizer_groups) == {"diffusion", "discriminator"}


# the whole


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_a_plan_has_a_turn_for_each_player_and_reads_no_weights(head):
    trim = {"trim_config": {"trim_prob": 1.0}}
    warm = {"use_model_as_teacher": True, "teacher_model_ckpt": "not/there.ckpt", "ode_warmup": {"warmup_steps": 10}}
    plan = make_plan(parse_run_config(arc(head, discriminator=ALL_LOSSES, training=trim, **warm)), batch_size=2)
    assert {turn.player for turn in plan.turns} == {"diffusion", "discriminator"}
    assert "discriminator" in {part.name for part in plan.parts}


@pytest.mark.slow
@pytest.mark.parametrize("base", [text_to_audio, inpainting])
def test_a_run_from_the_command_line_leaves_a_model_that_generates(base, teacher, tmp_path):
    config = arc("conv", base=base, discriminator=ALL_LOSSES, **teacher(base()))
    config["model"]["diffusion"]["diffusion_objective"] = "rf_denoiser"
    config["training"]["demo"] |= {"demo_every": 3, "demo_cfg_scales": [1.0]}
    (tmp_path / "model.json").write_text(json.dumps(config))
    (tmp_path / "data.json").write_text(json.dumps({"dataset_type": "synthetic", "num_items": 32}))
    flags = "--batch-size 4 --max-steps 6 --num-workers 0 --logger csv --accelerator cpu --name arc"
    paths = ["--model-config", str(tmp_path / "model.json"), "--dataset-config", str(tmp_path / "data.json"), "--save-dir", str(tmp_path)]
    assert main(["train", *paths, *flags.split()]) == 0
    run = tmp_path / "arc"
    assert list((run / "demos").glob("step_00000006/*.wav"))
    model, _ = get_pretrained_model(run / "exports")
    assert not [key for key in model.state_dict() if "discriminator" in key or "teacher" in key]
    if base is text_to_audio:
        audio = generate_diffusion_cond(model, steps=2, cfg_scale=1.0, conditioning=[{"prompt": "a bell"}], sample_size=2048, seed=1)
        assert audio.shape == (1, 1, 2048) and audio.isfinite().all()
