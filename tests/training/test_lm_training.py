"""Language models in training: the loss, what moves and what does not, averages, stored tokens, demos, runs, and impossible settings."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import soundfile
import torch
from test_host import Recorder, Repeat, fit, loader, wrapper

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.models import create_model_from_config, get_pretrained_model
from stable_audio_tools.models.checkpoints import load_into, load_weights
from stable_audio_tools.training import create_demo_callback_from_config
from stable_audio_tools.training.checkpoints import RunCheckpoint
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.plan import make_plan

PATTERNS = ("delay", "parallel", "unroll", "musiclm", "coarse_first")
BOTTLENECKS = {
    "dac_rvq": None,
    "rvq": {"type": "rvq", "config": {"dim": 8, "codebook_size": 16, "num_quantizers": 3, "codebook_dim": 4, "kmeans_init": False}},
    "fsq": {"type": "fsq", "config": {"levels": [4, 4], "num_codebooks": 3, "dim": 8}},
}


def unconditioned(**training):
    """The same model without conditions."""
    config = configs.language_model(**{"demo": {"demo_every": 1000}, **training})
    del config["model"]["conditioning"]
    lm = config["model"]["lm"]
    del lm["cross_attention_cond_ids"]
    lm["config"] = {"embed_dim": 32, "depth": 2, "dim_heads": 16}
    return config


def stored(dtype=torch.int64):
    """A batch of a data set of tokens, which wraps its masks in lists; of 24 frames 18 are real."""
    tokens = torch.randint(16, (2, 3, 24), generator=torch.Generator().manual_seed(1)).to(dtype)
    return tokens, tuple({"prompt": f"sound {item}", "padding_mask": [torch.arange(24) < 18]} for item in range(2))


def tensors(module):
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


# the loss


def test_the_loss_is_the_mean_over_codebooks_of_the_mean_over_real_tokens():
    module = wrapper(configs.language_model(pre_encoded=True, cfg_dropout_prob=0.0, demo={}))
    batch = module.prepare(stored())
    out = module.strategy.loss(module.model, batch)
    logits, predicted = module.model.compute_logits(batch.tokens, batch.conditions)
    by_codebook = []
    for k in range(3):
        counted = [(b, t) for b in range(2) for t in range(18) if predicted[b, k, t]]  # 18 of 24 frames are real
        likely = torch.stack([logits[b, k, t].log_softmax(-1)[batch.tokens[b, k, t]] for b, t in counted])
        by_codebook.append(-likely.mean())
    torch.testing.assert_close(out.loss, torch.stack(by_codebook).mean())
    assert [*out.logs] == ["loss", "cross_entropy", "cross_entropy_q1", "cross_entropy_q2", "cross_entropy_q3"]
    for k, expected in enumerate(by_codebook, 1):
        torch.testing.assert_close(out.logs[f"cross_entropy_q{k}"], expected.detach())


@pytest.mark.parametrize("pattern", ["parallel", "unroll"])
def test_padding_changes_nothing_where_codebooks_do_not_lag(pattern):
    module = wrapper(configs.language_model(pattern=pattern, pre_encoded=True, cfg_dropout_prob=0.0, demo={}))
    batch = module.prepare(stored())
    other = replace(batch, tokens=torch.where(batch.mask[:, None], batch.tokens, 15 - batch.tokens))
    assert torch.equal(module.strategy.loss(module.model, batch).loss, module.strategy.loss(module.model, other).loss)


def test_a_clip_too_short_for_a_codebook_has_a_finite_loss():
    module = wrapper(configs.language_model(pre_encoded=True, demo={}))
    batch = module.prepare(stored())
    silent = replace(batch, mask=torch.zeros_like(batch.mask))
    assert module.strategy.loss(module.model, silent).loss == 0
    first_frame = replace(batch, mask=torch.arange(24).expand(2, -1) < 1)
    assert module.strategy.loss(module.model, first_frame).loss.isfinite()


@pytest.mark.parametrize(("dropout", "hears"), [(1.0, False), (0.0, True)])
@pytest.mark.slow
def test_dropped_conditions_are_not_heard(dropout, hears):
    module = wrapper(configs.language_model(pre_encoded=True, cfg_dropout_prob=dropout, demo={}))
    with torch.no_grad():  # branches start at zero, so a fresh model hears nothing anyway
        for parameter in module.model.lm.parameters():
            parameter.normal_(0, 0.2)
    tokens, metadata = stored()
    losses = [
        module.strategy.loss(module.model, module.prepare((tokens, tuple({**item, "prompt": prompt} for item in metadata)))).loss
        for prompt in ("a bell", "some rain")
    ]
    assert torch.equal(*losses) != hears


def test_gradients_reach_the_network_and_the_conditioner_and_not_the_tokenizer():
    module = wrapper(configs.language_model())
    module.train()
    module.strategy.loss(module.model, module.prepare(next(iter(loader(configs.language_model()))))).loss.backward()
    model = module.model
    assert all(p.grad is not None for p in [*model.lm.parameters(), *model.conditioner.parameters()] if p.requires_grad)
    assert all(p.grad is None and not p.requires_grad for p in model.pretransform.parameters())
    (players,) = module.strategy.players(model).values()
    assert {id(p) for p in players} == {id(p) for p in model.parameters() if p.requires_grad}


# runs


@pytest.mark.parametrize(
    ("pattern", "bottleneck"),
    [*((pattern, "dac_rvq") for pattern in PATTERNS), ("delay", "rvq"), ("delay", "fsq"), ("musiclm", "rvq"), ("unroll", "fsq")],
)
@pytest.mark.slow
def test_every_pattern_and_tokenizer_trains(pattern, bottleneck):
    config = configs.language_model(BOTTLENECKS[bottleneck], pattern, use_ema=True)
    module = wrapper(config)
    before = tensors(module)
    fit(module, loader(config), 2)
    moved = {name for name, value in tensors(module).items() if not torch.equal(value, before[name])}
    assert any(name.startswith("model.lm.") for name in moved) and any(name.startswith("model.conditioner.") for name in moved)
    assert not [name for name in moved if "pretransform" in name]
    module.train()
    assert not any(part.training for part in module.model.pretransform.modules())


def test_every_step_logs_the_perplexity_of_the_mean_cross_entropy():
    config = configs.language_model()
    module, recorder = wrapper(config), Recorder()
    module.log_every_n_steps = 3
    trainer = fit(module, loader(config), 3, recorder)
    (logged,) = [{name: float.fromhex(value) for name, value in entry.items()} for entry in recorder.losses if entry]
    trainer.validate(module, loader(config), verbose=False)
    validated = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    for prefix, found in (("train", logged), ("val", validated)):
        assert found[f"{prefix}/loss"] == found[f"{prefix}/cross_entropy"]
        for suffix in ("", "_q1", "_q2", "_q3"):
            expected = np.exp(found[f"{prefix}/cross_entropy{suffix}"])
            assert found[f"{prefix}/perplexity{suffix}"] == pytest.approx(expected, rel=1e-5)
    assert logged["train/lr"] == pytest.approx(3e-3)


def test_validation_is_of_the_averaged_weights_and_the_same_twice():
    config = configs.language_model(use_ema=True)
    module = wrapper(config)
    trainer = fit(module, loader(config), 1)

    def validated():
        trainer.validate(module, loader(config), verbose=False)
        return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}

    first = validated()
    with torch.no_grad():
        for parameter in module.model.lm.parameters():
            parameter.fill_(9.0)
    torch.manual_seed(77)
    assert validated() == first


def test_a_model_without_conditions_trains_and_samples():
    config = unconditioned(demo={"num_demos": 3, "num_continuations": 1})
    module, recorder = wrapper(config), Recorder()
    fit(module, Repeat(next(iter(loader(config)))), 20, recorder)
    values = [float.fromhex(entry["train/loss"]) for entry in recorder.losses if entry]
    assert values[-1] < 0.5 * values[0]
    made = create_demo_callback_from_config(config, demo_dl=loader(config)).render(module)
    assert [demo.title for demo in made[1:4]] == ["1, generated, cfg 1", "2, generated, cfg 1", "3, generated, cfg 1"]
    assert not torch.equal(made[1].audio, made[2].audio)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.slow
def test_half_precision(precision):
    config = configs.language_model(use_ema=True)
    module, recorder = wrapper(config), Recorder()
    fit(module, loader(config), 2, recorder, precision=precision)
    assert all(np.isfinite(float.fromhex(entry["train/loss"])) for entry in recorder.losses if entry)
    assert create_demo_callback_from_config(config, demo_dl=loader(config)).render(module)[-1].audio.isfinite().all()


def test_learning_rate_alone_stands_for_the_published_adamw():
    module = wrapper(configs.language_model())
    (optimizer,), _ = module.configure_optimizers()
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (3e-3, (0.9, 0.95), 0.1)


def test_optimizer_configs_name_the_player_lm():
    config = configs.language_model(optimizer_configs={"lm": {"optimizer": {"type": "SGD", "config": {"lr": 0.5}}}})
    del config["training"]["learning_rate"]
    (optimizer,), _ = wrapper(config).configure_optimizers()
    assert type(optimizer) is torch.optim.SGD


# averages and weights


def test_the_average_has_the_published_constants_and_the_same_tokenizer():
    module = wrapper(configs.language_model(use_ema=True))
    average = module.model_ema
    assert (average.beta, average.update_every, average.update_after_step, average.power) == (0.99, 10, 100, 2 / 3)
    assert average.ema_model.pretransform is module.model.pretransform
    assert average.ema_model.lm is not module.model.lm and module.sampling_model is average.ema_model
    plain = wrapper(configs.language_model())
    assert plain.sampling_model is plain.model and not plain.averages()


def test_the_average_follows_every_tenth_step():
    config = configs.language_model(use_ema=True)
    module = wrapper(config)
    history = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            averaged = pl_module.model_ema.ema_model.lm.state_dict()
            history.append(all(torch.equal(averaged[name], value) for name, value in pl_module.model.lm.state_dict().items()))

    fit(module, loader(config), 12, Watch())
    assert [index for index, same in enumerate(history) if same] == [0, 10]  # below step 100 it is copied


@pytest.mark.slow
def test_checkpoints_have_the_published_names_and_load_as_a_model(tmp_path):
    config = configs.language_model(use_ema=True)
    module = wrapper(config)
    fit(module, loader(config), 4, RunCheckpoint(tmp_path, every=0, keep=1))
    names = {name.split(".")[0] for name in torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]}
    assert names == {"model", "model_ema"}
    for average, expected in ((None, module.model_ema.ema_model), (False, module.model)):
        fresh = create_model_from_config(config)
        weights = load_weights(tmp_path / "last.ckpt", average=average)
        assert weights.averaged == (average is None)
        assert load_into(fresh, weights).complete
        for name, value in expected.state_dict().items():
            assert torch.equal(fresh.state_dict()[name], value), name


# stored tokens


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.slow
def test_stored_tokens_of_any_whole_numbers_train_and_are_shown(dtype):
    config = configs.language_model(pre_encoded=True, demo={"demo_every": 1000, "num_demos": 2, "num_continuations": 1})
    module, recorder = wrapper(config), Recorder()
    batches = Repeat(stored(dtype))
    fit(module, batches, 2, recorder)
    assert len(recorder.losses) == 2
    made = create_demo_callback_from_config(config, demo_dl=batches).render(module)
    assert [demo.kind for demo in made] == ["original", "original", "generated", "generated", "continuation"]
    assert made[0].audio.shape == (1, 18 * 32) and made[2].prompt == "sound 0"


def test_a_batch_of_batches_is_unwrapped():
    module = wrapper(configs.language_model(pre_encoded=True, demo={}))
    tokens, metadata = stored()
    assert torch.equal(module.prepare((tokens[None], metadata)).tokens, tokens)
    assert torch.equal(module.on_before_batch_transfer((tokens[None], metadata), 0)[0], tokens)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 3, 24), r"shape \(2, 3, 24\) of torch.float32, expected tokens \(batch, 3 codebooks, frames\) of whole numbers"),
        (torch.zeros(2, 4, 24, dtype=torch.int64), r"shape \(2, 4, 24\) of torch.int64"),
        (torch.full((2, 3, 24), 16), r"tokens from 16 to 16, expected \(batch, 3 codebooks, frames\) of whole numbers from 0 to 15"),
    ],
)
def test_stored_tokens_of_another_model_are_refused(tokens, message):
    module = wrapper(configs.language_model(pre_encoded=True, demo={}))
    with pytest.raises(ValueError, match=message):
        module.on_before_batch_transfer((tokens, stored()[1]), 0)


# demos


def test_demos_are_samples_and_continuations_at_each_scale():
    demo = {"demo_cond": [{"prompt": "a bell"}, {"prompt": "rain"}], "demo_cfg_scales": [1, 3], "num_continuations": 2, "prefix_share": 0.5}
    config = configs.language_model(demo={"demo_every": 1, "demo_duration_s": 0.3, **demo})
    module = wrapper(config)
    made = create_demo_callback_from_config(config, demo_dl=loader(config)).render(module)
    assert [demo.kind for demo in made] == ["original"] * 2 + (["generated"] * 2 + ["continuation"] * 2) * 2
    assert [demo.cfg_scale for demo in made] == [None] * 2 + [1] * 4 + [3] * 4
    assert [demo.prompt for demo in made[2:4]] == ["a bell", "rain"] and made[4].group == made[0].group
    assert len({demo.title for demo in made}) == len(made)
    assert all(demo.audio.shape == (1, 75 * 32) for demo in made[2:])  # 0.3 s are 75 frames
    assert made[4].info["prefix_s"] == 32 * 32 / 8000


def test_a_continuation_begins_with_the_clip():
    config = configs.language_model(demo={"demo_every": 1, "num_continuations": 1, "prefix_share": 0.5, "num_demos": 1})
    module = wrapper(config)
    audio, metadata = next(iter(loader(config)))
    made = create_demo_callback_from_config(config, demo_dl=[(audio, metadata)]).render(module)
    (continued,) = [demo for demo in made if demo.kind == "continuation"]
    clip = module.model.pretransform.decode_tokens(module.model.pretransform.tokenize(audio[:1]))[0]
    heard = 20 * 32  # of 32 frames given, those beyond the decoder's reach from what was generated
    torch.testing.assert_close(continued.audio[:, :heard], clip[:, :heard])
    assert not torch.equal(continued.audio, clip)


def test_demos_are_of_the_averaged_weights_and_the_same_twice():
    config = configs.language_model(use_ema=True)
    module = wrapper(config)
    demos = create_demo_callback_from_config(config, demo_dl=loader(config))
    first = demos.render(module)
    with torch.no_grad():
        for parameter in module.model.lm.parameters():
            parameter.fill_(9.0)
    assert all(torch.equal(a.audio, b.audio) for a, b in zip(first, demos.render(module), strict=True))


def test_one_entry_of_demo_cond_serves_all_demos():
    config = configs.language_model(demo={"demo_cond": [{"prompt": "a bell"}], "num_demos": 3})
    made = create_demo_callback_from_config(config).render(wrapper(config))
    assert [demo.prompt for demo in made] == ["a bell"] * 3
    assert not torch.equal(made[0].audio, made[1].audio)


def test_demos_without_demo_cond_and_data_say_what_they_lack():
    config = configs.language_model(demo={})
    with pytest.raises(ValueError, match="no demo_cond, and there is no data to take conditions from"):
        create_demo_callback_from_config(config).render(wrapper(config))


@pytest.mark.parametrize(("options", "nucleus", "top_k"), [({}, 0.95, None), ({"top_k": 5}, 0.0, 5), ({"top_p": 0.5}, 0.5, None)])
def test_how_demos_draw(options, nucleus, top_k):
    demo = parse_run_config(configs.language_model(demo=options)).training.demo
    assert (demo.nucleus, demo.top_k) == (nucleus, top_k)


@pytest.mark.slow
def test_demos_on_disk_do_not_move_the_random_numbers_of_training(tmp_path):
    config = configs.language_model(demo={"demo_every": 2, "demo_cfg_scales": [1, 2], "num_demos": 1, "num_continuations": 1})
    plain, with_demos = Recorder(), Recorder()
    fit(wrapper(config), loader(config), 4, plain)
    demos = create_demo_callback_from_config(config, demo_dl=loader(config), folder=tmp_path)
    fit(wrapper(config), loader(config), 4, with_demos, demos)
    assert plain.losses == with_demos.losses
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000000", "step_00000002", "step_00000004"]
    entries = json.loads((tmp_path / "step_00000004" / "demos.json").read_text())
    assert [entry["kind"] for entry in entries] == ["original"] + ["generated", "continuation"] * 2
    audio, rate = soundfile.read(tmp_path / "step_00000004" / entries[1]["audio"])
    assert rate == 8000 and len(audio) == 2048


# plans


@pytest.mark.slow
def test_a_plan_knows_the_average_and_what_stored_tokens_save():
    plans = [make_plan(parse_run_config(configs.language_model(**training))) for training in ({}, {"use_ema": True}, {"pre_encoded": True})]
    plain, averaged, stored_tokens = plans
    assert (plain.memory.average, averaged.memory.average > 0) == (0, True)
    assert [(part.name, part.trainable > 0) for part in plain.parts] == [("pretransform", False), ("lm", True), ("conditioner", True)]
    assert stored_tokens.flops < plain.flops


# impossible settings


def problem(config):
    with pytest.raises(ConfigError) as caught:
        parse_run_config(config)
    (entry,) = caught.value.to_dict()["problems"]
    return entry


@pytest.mark.parametrize(
    ("training", "path", "message", "fix"),
    [
        ({"demo": {"top_k": 3, "top_p": 0.5}}, "training.demo.top_k", "exclude each other", "keep one"),
        (
            {"demo": {"prefix_share": 0.5, "num_continuations": 0}},
            "training.demo.prefix_share",
            "no effect without",
            "raise num_continuations",
        ),
        (
            {"demo": {"num_demos": 3, "demo_cond": [{"prompt": "a"}, {"prompt": "b"}]}},
            "training.demo.num_demos",
            "num_demos is 3 but demo_cond has 2 entries",
            "make them equal",
        ),
        ({"demo": {"demo_cond": [{"promt": "a bell"}]}}, "training.demo.demo_cond[0]", 'has no "prompt"', "add it"),
        ({"demo": {"demo_duration_s": 0.004}}, "training.demo.demo_duration_s", "one frame of tokens", "longer"),
        ({"learning_rate": None}, "training.learning_rate", "no learning rate", "an entry for lm"),
        ({"optimizer_configs": {"ln": {"optimizer": {"type": "SGD"}}}}, "training.optimizer_configs.ln", 'no player "ln"', "lm"),
    ],
)
def test_settings_that_cannot_work_are_refused(training, path, message, fix):
    config = configs.language_model(**training)
    with pytest.raises(ConfigError) as caught:
        parse_run_config(config)
    entry = caught.value.to_dict()["problems"][0]
    assert entry["path"] == path and message in entry["message"] and fix in entry["fix"]


@pytest.mark.parametrize(
    ("training", "path"),
    [
        ({"cfg_dropout_prob": 0.2}, "training.cfg_dropout_prob"),
        ({"demo": {"demo_cfg_scales": [3]}}, "training.demo.demo_cfg_scales"),
        ({"demo": {"demo_cond": [{"prompt": "a"}]}}, "training.demo.demo_cond"),
    ],
)
def test_what_needs_conditions_is_refused_without_them(training, path):
    entry = problem(unconditioned(**training))
    assert entry["path"] == path and "the model has no conditions" in entry["message"] and "model.lm" in entry["fix"]


def test_a_clip_too_short_for_the_pattern_is_refused():
    config = configs.language_model()
    config["sample_size"] = 64
    entry = problem(config)
    assert entry["path"] == "sample_size" and "2 frames are too few for the delay pattern: codebook 3" in entry["message"]


def test_a_clip_longer_than_the_learned_positions_is_refused():
    config = configs.language_model(pattern="unroll")
    config["model"]["lm"]["config"] |= {"use_abs_pos_emb": True, "abs_pos_emb_max_length": 100}
    entry = problem(config)
    assert entry["path"] == "model.lm.config.abs_pos_emb_max_length" and entry["fix"] == "set it to at least 193"
    config["model"]["lm"]["config"]["abs_pos_emb_max_length"] = 193
    parse_run_config(config)


def test_the_default_key_of_a_condition_serves_demos_too():
    config = configs.language_model(demo={"demo_cond": [{"caption": "a bell"}]})
    config["model"]["conditioning"]["default_keys"] = {"prompt": "caption"}
    parse_run_config(config)


# the command


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["averaged", "unconditioned"])
def test_a_run_leaves_weights_that_load_demos_and_metrics(kind, tmp_path):
    demo = {"demo_every": 2, "num_demos": 1, "num_continuations": 1}
    config = configs.language_model(use_ema=True, demo=demo) if kind == "averaged" else unconditioned(demo=demo)
    (tmp_path / "model.json").write_text(json.dumps(config))
    command = [sys.executable, str(Path(__file__).resolve().parents[2] / "train.py"), "--model-config", "model.json", "--save-dir", "runs"]
    options = ["--name", "run", "--num-workers", "0", "--logger", "csv", "--max-steps", "4", "--log-every", "1", "--val-every", "2"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "run"
    assert sorted(path.name for path in (run / "demos").iterdir()) == [f"step_{step:08d}" for step in (0, 2, 4)]
    columns = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    wanted = {"train/loss", "train/perplexity_q3", "val/loss", "val/perplexity", "val/cross_entropy_q1"}
    assert wanted <= {*columns}
    assert "failed" not in done.stderr and "Traceback" not in (run / "train.log").read_text()
    model, _ = get_pretrained_model(run)
    audio = model.generate_audio(20, conditioning=[{"prompt": "a bell"}], seed=1)
    assert audio.shape == (1, 1, 640) and audio.isfinite().all()
