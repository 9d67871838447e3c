"""`fit`, `validate` and `test`: flags and YAML, the run folder and the numbers of `train`, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
CPU = ("--trainer.accelerator", "cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(configs.text_to_audio()))
    (tmp_path / "gan.json").write_text(json.dumps(configs.autoencoder()))
    (tmp_path / "data.json").write_text(json.dumps({"dataset_type": "synthetic", "num_items": 40}))
    return tmp_path


def fit(*argv, model="model.json"):
    quiet = ("--data.num_workers", "0", "--logger", "csv", "--trainer.log_every_n_steps", "1", *CPU)
    return main(["fit", "--model.config", model, "--data.config", "data.json", *quiet, *argv])


def train(*argv, model="model.json"):
    quiet = ("--num-workers", "0", "--logger", "csv", "--log-every", "1", "--accelerator", "cpu")
    return main(["train", "--model-config", model, "--dataset-config", "data.json", *quiet, *argv])


def refused(capsys, *argv):
    assert main(list(argv)) == 2
    assert not Path("runs").exists()
    return capsys.readouterr().err


def exported(name):
    return load_file(Path("runs") / name / "exports" / "model.safetensors")


def column(name, metric):
    header, *rows = [line.split(",") for line in (Path("runs") / name / "metrics.csv").read_text().splitlines()]
    return [row[header.index(metric)] for row in rows if row[header.index(metric)]]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["model.json", "gan.json"])
def test_fit_is_train_bit_for_bit(model, folder):
    options = ("--name", "theirs", "--max-steps", "4", "--val-every", "2", "--accum-batches", "2", "--gradient-clip-val", "0.1")
    assert train(*options, model=model) == 0
    ours = ("--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--trainer.accumulate_grad_batches", "2")
    assert fit("--name", "ours", *ours, "--trainer.gradient_clip_val", "0.1", model=model) == 0
    assert len(column("ours", "step")) == 4 and len(column("ours", "train/loss")) >= 2 and len(column("ours", "val/loss")) == 2
    assert column("ours", "train/loss") == column("theirs", "train/loss")
    assert column("ours", "val/loss") == column("theirs", "val/loss")
    ours, theirs = exported("ours"), exported("theirs")
    assert all(ours[key].equal(theirs[key]) for key in theirs)
    assert {p.name for p in Path("runs/theirs").iterdir()} == {p.name for p in Path("runs/ours").iterdir()}


@pytest.mark.slow
def test_clipping_and_accumulation_given_to_lightning_reach_our_loop(folder):
    assert fit("--name", "plain", "--trainer.max_steps", "2") == 0
    assert fit("--name", "summed", "--trainer.max_steps", "2", "--trainer.accumulate_grad_batches", "3") == 0
    assert fit("--name", "clipped", "--trainer.max_steps", "2", "--trainer.gradient_clip_val", "1e-6") == 0
    plain, others = exported("plain"), (exported("summed"), exported("clipped"))
    assert all(any(not plain[key].equal(other[key]) for key in plain) for other in others)


SPOIL = """
import lightning.pytorch as pl

class Spoil(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        batch[0].fill_(float("nan"))
"""


@pytest.mark.slow
def test_steps_that_are_not_finite_end_a_run_when_it_says(folder, monkeypatch, capsys):
    Path("spoil.py").write_text(SPOIL)
    monkeypatch.syspath_prepend(folder)
    callbacks = ("--trainer.callbacks", "spoil.Spoil", "--trainer.max_steps", "6", "--trainer.limit_val_batches", "0")
    assert fit("--name", "patient", *callbacks, "--max_bad_steps", "0") == 0
    assert fit("--name", "strict", *callbacks, "--max_bad_steps", "2") == 1
    assert "2 steps in a row" in capsys.readouterr().err


@pytest.mark.slow
def test_compiled_networks_train(folder):
    from torch._dynamo.utils import counters

    counters.clear()
    only = ("--trainer.max_steps", "1", "--trainer.limit_val_batches", "0")
    assert fit("--name", "plain", *only) == 0
    assert not counters["stats"]
    assert fit("--name", "compiled", *only, "--compile", "true") == 0
    assert counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_a_run_resumes_and_args_json_repeats_it(folder):
    assert fit("--name", "whole", "--trainer.max_steps", "6", "--trainer.limit_val_batches", "0") == 0
    assert fit("--name", "run", "--trainer.max_steps", "3", "--trainer.limit_val_batches", "0") == 0
    assert json.loads(Path("runs/run/run.json").read_text())["resume"].endswith("--recover")
    assert main(["fit", "--config", "runs/run/args.json", "--trainer.max_steps", "6", "--recover"]) == 0
    assert column("run", "train/loss") == column("whole", "train/loss")
    run, whole = exported("run"), exported("whole")
    assert all(run[key].equal(whole[key]) for key in whole)


@pytest.mark.slow
def test_validate_and_test_measure_a_checkpoint_and_weights_alike(folder, capsys):
    assert fit("--name", "run", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2") == 0
    capsys.readouterr()
    both = ("--model.config", "model.json", "--data.config", "data.json", "--data.num_workers", "0", *CPU)
    results = []
    for command, source in (
        ("validate", ("--ckpt_path", "runs/run/checkpoints/last.ckpt")),
        ("validate", ("--model.pretrained_ckpt_path", "runs/run/exports/model.safetensors")),
        ("test", ("--ckpt_path", "runs/run/checkpoints/last.ckpt")),
    ):
        assert main([command, *both, *source]) == 0
        results.append(dict(line.split() for line in capsys.readouterr().out.splitlines()))
    assert results[0] == results[1]
    assert float(results[0]["val/loss"]) == pytest.approx(float(column("run", "val/loss")[-1]), rel=1e-4)
    assert float(results[2]["test/loss"]) == pytest.approx(float(results[0]["val/loss"])) and "val/loss" not in results[2]


@pytest.mark.slow
def test_yaml_paths_start_from_the_file_and_callbacks_of_lightning_join_ours(folder):
    nested = folder / "conf"
    nested.mkdir()
    callbacks = [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 0}}]
    trainer = {"max_steps": 50, "val_check_interval": 2, "callbacks": callbacks, "accelerator": "cpu"}
    data = {"config": "../data.json", "num_workers": 0}
    run = {"model": {"config": "../model.json"}, "data": data, "trainer": trainer, "name": "run", "logger": "csv"}
    (nested / "run.yaml").write_text(yaml.safe_dump(run))
    model = configs.text_to_audio(learning_rate=1.0)  # validation gets worse at once
    (folder / "model.json").write_text(json.dumps(model))
    assert main(["fit", "--config", "conf/run.yaml"]) == 0
    assert json.loads(Path("runs/run/run.json").read_text())["step"] < 50


@pytest.mark.slow
def test_print_config_is_a_file_that_fit_accepts(folder, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--model.config", "model.json", "--trainer.max_steps", "1", *CPU, "--logger", "csv", "--print_config"])
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["trainer"]["max_steps"] == 1
    Path("printed.yaml").write_text(printed)
    assert main(["fit", "--config", "printed.yaml", "--data.num_workers", "0"]) == 0
    assert json.loads(Path("runs/model/run.json").read_text())["step"] == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--data.confg", "d.json"), ("--data.confg", "did you mean data.config?")),
        (("--trainer.devicess", "2"), ("--trainer.devicess", "did you mean trainer.devices?")),
        (("--data.batch_size", "x"), ("data.batch_size", "'x'")),
        (("--data.batch_size", "0"), ("data.batch_size",)),
        (("--data.config", "missing.json"), ("data.config", "missing.json")),
        (("--trainer.fast_dev_run", "true"), ("trainer.fast_dev_run", "--trainer.max_steps 2")),
        (("--trainer.min_steps", "5"), ("trainer.min_steps", "--trainer.max_steps counts train steps")),
        (("--trainer.enable_checkpointing", "false"), ("trainer.enable_checkpointing", "--checkpoint_every 0")),
        (("--trainer.default_root_dir", "x"), ("trainer.default_root_dir", "<save_dir>/<name>")),
        (("--trainer.gradient_clip_algorithm", "value"), ("trainer.gradient_clip_algorithm", "largest norm")),
        (("--trainer.accelerator", "abacus"), ("--trainer.accelerator abacus", "auto takes what this machine has")),
        (("--trainer.limit_train_batches", "1.5"), ("trainer", "limit_train_batches")),
        (("--trainer.strategy", "deepspeed_stage_2"), ("--trainer.strategy deepspeed_stage_2", "pip install deepspeed")),
        (("--ckpt_path", "nothing.ckpt"), ("nothing.ckpt",)),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(argv, said, folder, capsys):
    message = refused(capsys, "fit", "--model.config", "model.json", *argv)
    assert all(part in message for part in said), message


def test_problems_of_configs_are_said_as_train_says_them(folder, capsys):
    broken = configs.text_to_audio()
    broken["training"]["lerning_rate"] = 1
    (folder / "broken.json").write_text(json.dumps(broken, indent=1))
    message = refused(capsys, "fit", "--model.config", "broken.json")
    assert message == refused(capsys, "train", "--model-config", "broken.json")
    assert "broken.json:" in message and 'did you mean "learning_rate"?' in message


def test_a_yaml_file_with_a_bad_key_or_no_model_is_refused(folder, capsys):
    (folder / "bad.yaml").write_text("model: {config: model.json}\ntrainer:\n  devicess: 1\n")
    assert "did you mean trainer.devices?" in refused(capsys, "fit", "--config", "bad.yaml")
    (folder / "torn.yaml").write_text("model: {config: [")
    assert "line 2, column 1" in refused(capsys, "fit", "--config", "torn.yaml")
    assert "model.config" in refused(capsys, "fit")


def test_validate_takes_no_options_of_a_run_and_needs_data(folder, capsys):
    assert "--save_dir" in refused(capsys, "validate", "--model.config", "model.json", "--save_dir", "x")
    (folder / "data.json").write_text(json.dumps({"dataset_type": "synthetic", "hold_out": 0}))
    message = refused(capsys, "test", "--model.config", "model.json", "--data.config", "data.json", *CPU)
    assert "data.test_config" in message and "--data.test_config FILE" in message


@pytest.mark.parametrize("path", sorted((ROOT / "model_configs" / "cluster").glob("*.yaml")), ids=lambda p: p.stem)
def test_published_cluster_files_are_accepted(path, folder, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(path), "--print_config"])
    read = yaml.safe_load(capsys.readouterr().out)
    assert read["trainer"]["num_nodes"] > 1 and (path.parent / read["model"]["config"]).exists()


def fit_apart(*argv):
    """`fit` in processes of its own: a distributed strategy leaves its mark on the environment."""
    quiet = ("--data.config", "data.json", "--data.num_workers", "0", *CPU, "--trainer.max_steps", "2", "--logger", "csv", "--name", "run")
    line = [sys.executable, "-m", "stable_audio_tools", "fit", *argv, *quiet]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("report: ") == 1 and json.loads(Path("runs/run/run.json").read_text())["step"] == 2


@pytest.mark.slow
def test_a_cluster_file_trains_with_what_this_machine_has(folder):
    here = ("--trainer.num_nodes", "1", "--trainer.devices", "1", "--trainer.precision", "32-true", "--data.batch_size", "2")
    fit_apart("--config", str(ROOT / "model_configs" / "cluster" / "ddp.yaml"), "--model.config", "model.json", *here)


@pytest.mark.slow
def test_two_processes_of_fit_are_one_run(folder):
    fit_apart("--model.config", "gan.json", "--trainer.devices", "2", "--trainer.strategy", "ddp")


HELP = """
import sys
from stable_audio_tools.cli.main import main
try:
    main(["train", "--help"])
except SystemExit:
    pass
assert not {"jsonargparse", "lightning"} & set(sys.modules)
"""


def test_the_help_of_other_commands_waits_for_neither_lightning_nor_jsonargparse():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", HELP], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
