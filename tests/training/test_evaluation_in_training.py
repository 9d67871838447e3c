"""`training.evaluation`: measured beside training without touching it, logged, watched for the best weights, and never fatal."""

import json
import math
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs
from ranks import batches, train
from test_host import wrapper

from stable_audio_tools.cli.main import main
from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.evaluation.embedders import build_embedder
from stable_audio_tools.evaluation.measure import Measure
from stable_audio_tools.evaluation.metrics import measure
from stable_audio_tools.evaluation.model_clips import compared, made_pairs
from stable_audio_tools.training.checkpoint_io import AtomicCheckpointIO
from stable_audio_tools.training.checkpoints import RunCheckpoint
from stable_audio_tools.training.config import parse_run_config
from stable_audio_tools.training.data_module import AudioDataModule
from stable_audio_tools.training.evaluation_callback import FILE, EvaluationCallback, forget_after
from stable_audio_tools.training.module_evaluation import ModuleEvaluation
from stable_audio_tools.training.monitor import Goal, ValidationMonitor
from stable_audio_tools.training.parallel import FullyShardedStrategy

KINDS = {
    "text_to_audio": configs.text_to_audio,
    "unconditional": configs.unconditional,
    "autoencoder": configs.autoencoder,
    "diffusion_autoencoder": configs.diffusion_autoencoder,
    "language_model": configs.language_model,
}
SHORT = {"every": 2, "num_clips": 4, "batch_size": 3}


def evaluated(config, **section):
    """The config with an evaluation, of few sampler steps."""
    config["training"]["evaluation"] = SHORT | section
    if "demo_steps" in config["training"]["demo"]:
        config["training"]["demo"]["demo_steps"] = 2
    return config


def evaluation(config, folder, **options):
    loader = batches(config, 3, 8, shuffle=False, rank=0, world_size=1)
    run = parse_run_config(config)
    return EvaluationCallback(run.training.evaluation.every, ModuleEvaluation(run, loader), folder, **options)


def lines(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def values(line):
    return {metric["name"]: metric["value"] for metric in line["metrics"]}


class Told:
    """An evaluation that says what is written here for each step, or raises it."""

    def __init__(self, *said):
        self.said = iter(said)

    def make(self, module, rank, world_size, moved):
        torch.rand(7)  # as sampling does
        assert not module.sampling_model.model.training and not torch.is_grad_enabled()
        return [rank]

    def measure(self, module, shares):
        value = next(self.said)
        if isinstance(value, Exception):
            raise value
        return [Measure("score", value, value - 1, value + 1, 4, {"clips": "none"}, "lower")]


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k == "text_to_audio" else pytest.mark.slow) for k in KINDS])
@pytest.mark.slow
def test_training_does_not_notice_and_the_sampling_weights_are_measured(kind, tmp_path):
    config = evaluated(KINDS[kind]())
    module, losses, _ = train(config, batches(config, 4, 16), tmp_path, evaluation(config, tmp_path), steps=3)
    _, alone, _ = train(config, batches(config, 4, 16), tmp_path / "alone", steps=3)
    assert [row for row in losses if row] == alone and len(alone) == 3

    found = lines(tmp_path)
    assert [line["step"] for line in found] == [2, 3], "every second step, and the last"
    run = parse_run_config(config)
    sampling = run.training.evaluation.sampling(run.training.demo)
    pairs = list(made_pairs(module.sampling_model, batches(config, 4, 8, shuffle=False), 4, sampling, run.sample_size))
    comparison = compared(pairs, run.sample_rate, paired="autoencoder" in kind, embedders=[build_embedder("log_mel")])
    (again,) = measure(["frechet"], comparison)
    assert values(found[-1])["frechet_log_mel"] == pytest.approx(again.value, rel=1e-3)
    assert all(math.isfinite(metric["value"]) and metric["recipe"]["train_step"] == 3 for metric in found[-1]["metrics"])


@pytest.mark.parametrize("kind", ["text_to_audio", "language_model"])
@pytest.mark.slow
def test_stored_latents_and_tokens_are_heard(kind):
    """Decoded, they are what the same clips are through the pretransform; padding of frames is padding of samples."""
    config = evaluated(KINDS[kind](pre_encoded=True), num_clips=4, batch_size=4, metrics=["frechet"])
    module = wrapper(config)
    audio, metadata = next(iter(batches(config, 4, 8, shuffle=False)))
    pretransform, tokens = module.model.pretransform, kind == "language_model"
    stored = pretransform.tokenize(audio) if tokens else pretransform.encode(audio)
    heard = pretransform.decode_tokens(stored) if tokens else pretransform.decode(stored)
    frames, half = stored.shape[-1], stored.shape[-1] // 2
    masked = [{**item, "padding_mask": torch.arange(frames) < half} for item in metadata]

    def found(run, batch):
        measured = ModuleEvaluation(parse_run_config(run), [batch])
        return measured.measure(module, [measured.make(module, 0, 1, lambda: None)])[0].value

    plain = evaluated(KINDS[kind](), num_clips=4, batch_size=4, metrics=["frechet"])
    of_stored = found(config, (stored, masked))
    module.pre_encoded = False
    samples = [{**item, "padding_mask": torch.arange(audio.shape[-1]) < audio.shape[-1] // 2} for item in metadata]
    assert of_stored == pytest.approx(found(plain, (heard, samples)), rel=1e-3)
    assert of_stored != pytest.approx(found(plain, (heard, metadata)), rel=1e-3)


@pytest.mark.slow
def test_what_it_says_is_in_lightnings_table_and_with_every_logger(tmp_path):
    config = configs.text_to_audio()
    seen = {}

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            if "eval/score" in trainer.callback_metrics:
                seen[module.train_step] = float(trainer.callback_metrics["eval/score"])

    callback = EvaluationCallback(2, Told(3.0, 2.0), tmp_path)
    train(config, batches(config, 4, 16), tmp_path, callback, Look(), steps=4)
    assert seen == {2: 3.0, 3: 3.0, 4: 2.0}
    assert [values(line) for line in lines(tmp_path)] == [{"score": 3.0}, {"score": 2.0}]


def test_a_failing_evaluation_does_not_end_training(tmp_path, caplog):
    config = configs.text_to_audio()
    callback = EvaluationCallback(1, Told(RuntimeError("no such sound"), math.nan, 1.0), tmp_path)
    module, _, _ = train(config, batches(config, 4, 16), tmp_path, callback, steps=3)
    assert module.train_step == 3
    assert "the evaluation at step 1 failed; training goes on" in caplog.text and "no such sound" in caplog.text
    assert [(line["step"], values(line)["score"]) for line in lines(tmp_path)] == [(2, None), (3, 1.0)]


@pytest.mark.slow
def test_the_best_by_evaluation_stays_and_a_run_that_gets_no_better_ends(tmp_path):
    config, exported = configs.text_to_audio(), []
    saver = RunCheckpoint(tmp_path, every=1, keep=-1)
    goal = Goal("eval/score", patience=2)
    monitor = ValidationMonitor(goal, saver, lambda module: exported.append(module.train_step))
    callback = EvaluationCallback(1, Told(3.0, 1.0, 2.0, 5.0, 0.0), tmp_path, judge=monitor.judge)
    module, _, _ = train(config, batches(config, 4, 16), tmp_path / "other", callback, monitor, saver, steps=5)
    assert module.train_step == 4 and exported == [1, 2]
    assert [path.name for path in tmp_path.glob("best_step=*")] == ["best_step=00000002_eval_score=1.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "best.ckpt")["stable_audio_tools"]["train_step"] == 2


@pytest.mark.slow
def test_validation_does_not_stand_in_for_an_evaluation(tmp_path):
    """A validation between two evaluations would otherwise judge the old value once more, as one without improvement."""
    config = configs.text_to_audio()
    saver = RunCheckpoint(tmp_path, every=0, keep=-1)
    monitor = ValidationMonitor(Goal("eval/score", patience=2), saver, lambda module: None)
    callback = EvaluationCallback(3, Told(1.0, 2.0), tmp_path, judge=monitor.judge)
    validation = batches(config, 4, 4, shuffle=False)
    settings = {"validation": validation, "limit_val_batches": 1, "val_check_interval": 1, "check_val_every_n_epoch": None}
    module, _, _ = train(config, batches(config, 4, 32), tmp_path / "o", callback, monitor, saver, steps=6, **settings)
    assert module.train_step == 6 and monitor.history == {3: 1.0, 6: 2.0}


def test_a_resumed_run_drops_what_lies_ahead_of_it(tmp_path):
    path = tmp_path / FILE
    path.write_text("".join(json.dumps({"step": step, "metrics": []}) + "\n" for step in (2, 4, 6)) + '{"step": 8, "met')
    forget_after(path, 4)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]
    forget_after(tmp_path / "none", 4)


def two_ranks(config, folder, *callbacks, sharded=False):
    """On one of two ranks: training losses, and what Lightning's table holds of the evaluation."""
    seen = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            seen.append({k: float(v).hex() for k, v in trainer.callback_metrics.items() if k.startswith("eval/")})

    machine = {"strategy": FullyShardedStrategy()} if sharded else {}
    _, losses, _ = train(config, batches(config, 2, 16), folder, *callbacks, Look(), steps=4, processes=2, **machine)
    return [row for row in losses if row], seen


def evaluated_by_two(config, folder, sharded):
    return two_ranks(config, folder, evaluation(config, folder), sharded=sharded)


class Broken(Told):
    """Fails on the second rank, the first time."""

    def make(self, module, rank, world_size, moved):
        if rank and module.train_step == 2:
            raise RuntimeError("no such sound")
        return super().make(module, rank, world_size, moved)


def evaluated_by_one_of_two(config, folder):
    return two_ranks(config, folder, EvaluationCallback(2, Broken(1.0, 2.0), folder))


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_two_processes_share_one_evaluation(sharded, ranks, tmp_path):
    """The learning rate is 0, so the weights, and with them what is measured, are those of a single process."""
    still = {"diffusion": {"optimizer": {"type": "SGD", "config": {"lr": 0.0}}}}
    config = evaluated(configs.text_to_audio(optimizer_configs=still), num_clips=7, batch_size=2)
    del config["training"]["learning_rate"]
    (losses, seen), (_, others) = ranks(evaluated_by_two, config, tmp_path, sharded)
    assert seen == others and len(seen[-1]) >= 2
    assert [line["step"] for line in lines(tmp_path)] == [2, 4], "written by one of them"
    if not sharded:
        (alone, _), _ = ranks(two_ranks, config, tmp_path / "alone")
        assert losses == alone

    (tmp_path / "one").mkdir()
    train(config, batches(config, 2, 16), tmp_path / "one", evaluation(config, tmp_path / "one"), steps=4)
    one, two = values(lines(tmp_path / "one")[-1]), values(lines(tmp_path)[-1])
    assert one.keys() == two.keys() and all(two[name] == pytest.approx(one[name], rel=1e-3) for name in one)


@pytest.mark.slow
def test_a_failure_on_one_rank_leaves_the_evaluation_out_on_both(ranks, tmp_path):
    (_, seen), (_, others) = ranks(evaluated_by_one_of_two, configs.text_to_audio(), tmp_path)
    assert seen == others and [line["step"] for line in lines(tmp_path)] == [4] and seen[2] == {}


@pytest.mark.slow
def test_lightnings_own_callbacks_find_it(tmp_path):
    config = configs.text_to_audio()
    best = pl.callbacks.ModelCheckpoint(tmp_path / "theirs", monitor="eval/score", save_on_train_epoch_end=True)
    stop = pl.callbacks.EarlyStopping("eval/score", patience=1, check_on_train_epoch_end=True)
    callback = EvaluationCallback(2, Told(*map(float, (3, 1, 2, 4, 5, 6))), tmp_path)
    module, _, _ = train(config, batches(config, 4, 8), tmp_path, callback, best, stop, steps=12)
    assert module.train_step == 6 and float(best.best_model_score) == 1.0


def problems(config, data=None, **options):
    with pytest.raises(ConfigError) as caught:
        run = parse_run_config(config)
        AudioDataModule(data or {"dataset_type": "synthetic", "num_items": 8, "hold_out": 0}, num_workers=0, **options).build(run)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "section", "said"),
    [
        ("autoencoder", {"steps": 4}, ("training.evaluation.steps", "without a sampler", "remove it")),
        ("autoencoder", {"embedder": "latents"}, ("training.evaluation.embedder", "change as it trains", "latents:FILE")),
        ("language_model", {"steps": 4}, ("training.evaluation.steps", "without a sampler")),
        ("unconditional", {"cfg_scale": 3.0}, ("training.evaluation.cfg_scale", "without guidance", "remove it")),
        ("text_to_audio", {"metrics": ["frechett"]}, ("training.evaluation.metrics[0]", "frechett", 'did you mean "frechet"')),
        ("text_to_audio", {"embedder": "logmel"}, ("training.evaluation.embedder", 'did you mean "log_mel"')),
        ("text_to_audio", {"embedder": "clap:nowhere.pt"}, ("embedder clap", "there is no nowhere.pt")),
        ("text_to_audio", {"metrics": ["text_score"]}, ("training.evaluation.metrics", "an embedder that knows text")),
        ("text_to_audio", {"every": 0}, ("training.evaluation.every",)),
        ("text_to_audio", {}, ("training.evaluation", "no validation data", "--val-dataset-config")),
        ("text_to_audio", {"dataset": "nowhere.json"}, ("nowhere.json",)),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_there_is_a_model(kind, section, said):
    message = problems(evaluated(KINDS[kind](), **section))
    assert all(part in message for part in said), message


def test_guidance_without_conditions_is_refused():
    config = evaluated(configs.language_model(), cfg_scale=2.0)
    del config["model"]["conditioning"], config["model"]["lm"]["cross_attention_cond_ids"], config["training"]["demo"]["demo_cond"]
    for key in ("cross_attn_cond_dim", "project_cross_attn_cond", "causal_cross_attention"):
        config["model"]["lm"]["config"].pop(key)
    assert "training.evaluation.cfg_scale" in problems(config)


def test_more_clips_than_there_are_is_an_error_where_they_were_asked_for():
    data = {"dataset_type": "synthetic", "num_items": 8}
    message = problems(evaluated(configs.text_to_audio(), num_clips=10_000), data)
    assert "training.evaluation.num_clips" in message and "10000" in message and "set it to" in message


def test_its_own_dataset_takes_the_place_of_validation(tmp_path):
    (tmp_path / "data.json").write_text(json.dumps({"dataset_type": "synthetic", "num_items": 5, "seed": 7}))
    config = evaluated(configs.text_to_audio(), dataset=str(tmp_path / "data.json"))
    data = AudioDataModule({"dataset_type": "synthetic", "num_items": 8}, num_workers=0)
    data.build(parse_run_config(config))
    found = [item["path"] for _, metadata in data.evaluation_clips() for item in metadata]
    assert len(found) == 5 and all("/7/" in path for path in found)


@pytest.mark.parametrize(
    ("metric", "section", "said"),
    [
        ("eval/frechet_log_mel", None, ("--monitor eval/frechet_log_mel", 'add "evaluation"')),
        ("eval/frechet_logmel", {}, ("--monitor eval/frechet_logmel", 'did you mean "frechet_log_mel"')),
        ("eval/kad_log_mel", {}, ("no evaluation measures it", "frechet_log_mel")),
        ("eval/silence_distance", {"metrics": ["statistics"]}, ("--monitor-mode min or max",)),
    ],
)
def test_a_metric_that_no_evaluation_measures_is_told_at_once(metric, section, said, tmp_path, capsys):
    config = configs.text_to_audio() if section is None else evaluated(configs.text_to_audio(), **section)
    (tmp_path / "model.json").write_text(json.dumps(config))
    flags = ["--model-config", str(tmp_path / "model.json"), "--save-dir", str(tmp_path / "runs"), "--monitor", metric]
    assert main(["train", *flags]) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in said), message
    assert not (tmp_path / "runs").exists()
