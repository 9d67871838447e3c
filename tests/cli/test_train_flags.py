"""Flags of `train` about judging, finding and measuring: each in real, very short runs; what they refuse, with the fix."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.cli.main import main

STILL = {"diffusion": {"optimizer": {"type": "SGD", "config": {"lr": 0.0}}}}
DATA = {"dataset_type": "synthetic", "num_items": 16, "hold_out": 0}


class Folder:
    """Runs `train` in a folder of its own; flags that come later win."""

    def __init__(self, path):
        self.path = path
        self.model = configs.text_to_audio()

    def train(self, *argv, name="run"):
        flags = [
            "--num-workers",
            "0",
            "--logger",
            "csv",
            "--log-every",
            "1",
            "--max-steps",
            "4",
            "--accelerator",
            "cpu",
            "--val-every",
            "0",
        ]
        model = ["--model-config", self.write("model.json", self.model), "--save-dir", str(self.path / "runs"), "--name", name]
        return main(["train", *model, *flags, *map(str, argv)])

    def write(self, name, value):
        (self.path / name).write_text(json.dumps(value))
        return str(self.path / name)

    def __truediv__(self, name):
        return self.path / "runs" / name

    def column(self, column, run="run"):
        """Step to value, as text, where the column has one."""
        with (self / run / "metrics.csv").open(newline="") as file:
            return {int(row["step"]): row[column] for row in csv.DictReader(file) if row.get(column)}

    def step(self, run="run"):
        return json.loads((self / run / "run.json").read_text())["step"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Folder(tmp_path)


@pytest.mark.parametrize(
    ("argv", "source", "fix"),
    [
        (["--monitor", "val/loss"], "--monitor", "set --val-every above 0"),
        (["--early-stopping-patience", "2"], "--early-stopping-patience", "set --val-every above 0"),
        (["--val-every", "1", "--early-stopping-min-delta", "0.1"], "--early-stopping-min-delta", "set --early-stopping-patience above 0"),
        (["--val-every", "1", "--monitor", "loss"], "--monitor loss", "val/loss is one"),
        (["--val-every", "1", "--monitor", "val/si_sdr"], "--monitor val/si_sdr", "say --monitor-mode min or max"),
        (
            ["--val-every", "1", "--monitor-mode", "min", "--save-best", "0"],
            "--monitor-mode",
            "set --save-best or --early-stopping-patience",
        ),
        (["--find-lr", "--batch-size", "auto"], "--find-lr", "give --batch-size a number"),
        (["--save-best", "-1"], "--save-best", "expected 0 or more"),
        (["--batch-size", "some"], "--batch-size", "expected a whole number or auto"),
        (["--profiler", "perf"], "--profiler", "simple, advanced, pytorch"),
        (["--matmul-precision", "low"], "--matmul-precision", "highest, high, medium"),
    ],
)
def test_what_can_have_no_effect_is_refused_before_anything_is_written(folder, capsys, argv, source, fix):
    assert folder.train(*argv) == 2
    said = capsys.readouterr().err
    assert source in said and fix in said
    assert not (folder.path / "runs").exists()


def test_a_monitor_needs_data_to_validate_on(folder, capsys):
    (folder.path / "sounds").mkdir()
    soundfile.write(folder.path / "sounds" / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(4000), 8000)
    data = {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(folder.path / "sounds")}]}
    assert folder.train("--dataset-config", folder.write("data.json", data), "--val-every", "1", "--early-stopping-patience", "1") == 2
    assert "give --val-dataset-config" in capsys.readouterr().err


@pytest.mark.slow
def test_the_best_weights_are_exported_and_their_checkpoint_stays(folder):
    assert folder.train("--val-every", "1", "--save-top-k", "1", "--checkpoint-every", "1") == 0
    values = {step: float(value) for step, value in folder.column("val/loss").items()}
    best = min(values, key=values.get)
    with safe_open(folder / "run" / "exports" / "best.safetensors", "pt") as file:
        assert file.metadata()["train_step"] == str(best)
    checkpoints = folder / "run" / "checkpoints"
    (kept,) = checkpoints.glob("best_step=*.ckpt")
    assert kept.name == f"best_step={best:08d}_val_loss={values[best]:.6g}.ckpt" and kept.samefile(checkpoints / "best.ckpt")
    assert len(list(checkpoints.glob("step=*.ckpt"))) == 1


@pytest.mark.slow
def test_no_best_is_kept_unless_asked_for(folder):
    assert folder.train("--val-every", "1", "--save-best", "0", "--max-steps", "1") == 0
    assert not list((folder / "run").rglob("*best*")) and folder.column("val/loss")


@pytest.mark.slow
def test_a_run_that_gets_no_better_ends_and_recover_does_not_revive_it(folder, caplog):
    folder.model = configs.text_to_audio(optimizer_configs=STILL, use_ema=False)
    del folder.model["training"]["learning_rate"]
    caplog.set_level("INFO", "stable_audio_tools")
    flags = ("--val-every", "2", "--early-stopping-patience", "2", "--max-steps", "50")
    assert folder.train(*flags) == 0
    assert folder.step() == 6 and "val/loss has not improved in 2 validations" in caplog.text
    assert folder.train(*flags, "--recover") == 0 and folder.step() == 6
    assert folder.train(*flags, "--recover", "--early-stopping-patience", "4") == 0 and folder.step() == 10


@pytest.mark.slow
def test_an_unknown_metric_ends_the_run_at_its_first_validation(folder, capsys):
    assert folder.train("--val-every", "1", "--monitor", "val/los", "--monitor-mode", "min") == 2
    assert 'did you mean "val/loss"?' in capsys.readouterr().err


@pytest.mark.slow
def test_epochs_and_steps_the_first_reached_ends_the_run_and_a_resumed_one_is_the_straight_one(folder):
    data = ("--dataset-config", folder.write("data.json", DATA), "--checkpoint-every", "1")
    assert folder.train(*data, "--max-epochs", "2", "--max-steps", "3", name="steps") == 0 and folder.step("steps") == 3
    assert folder.train(*data, "--max-epochs", "2", "--max-steps", "50", name="straight") == 0 and folder.step("straight") == 8
    assert folder.train(*data, "--max-epochs", "1", "--max-steps", "0", name="again") == 0 and folder.step("again") == 4
    assert folder.train(*data, "--max-epochs", "2", "--max-steps", "6", "--recover", name="again") == 0 and folder.step("again") == 6
    assert folder.train(*data, "--max-epochs", "2", "--max-steps", "0", "--recover", name="again") == 0 and folder.step("again") == 8
    assert folder.column("train/loss", "again") == folder.column("train/loss", "straight")


@pytest.mark.slow
def test_batch_size_auto_is_one_number_for_the_whole_run_and_leaves_it_as_it_would_be(folder):
    data = ("--dataset-config", folder.write("data.json", DATA))
    assert folder.train(*data, "--batch-size", "auto", "--max-steps", "2", name="auto") == 0
    assert json.loads((folder / "auto" / "args.json").read_text())["batch_size"] == 16
    assert folder.train(*data, "--batch-size", "16", name="given") == 0
    larger = ("--dataset-config", folder.write("larger.json", {**DATA, "num_items": 32}))
    assert folder.train(*larger, "--batch-size", "auto", "--recover", name="auto") == 0
    assert json.loads((folder / "auto" / "args.json").read_text())["batch_size"] == 16
    given, auto = (folder.column("train/loss", name) for name in ("given", "auto"))
    assert [auto[step] for step in (1, 2)] == [given[step] for step in (1, 2)]


@pytest.mark.slow
def test_learning_rates_are_said_instead_of_training(folder, capsys):
    assert folder.train("--find-lr") == 0
    assert "diffusion: learning rate" in capsys.readouterr().out
    assert {path.name for path in (folder / "run").iterdir()} == {"lr_finder.csv"}
    assert folder.train("--max-steps", "1") == 0  # the same name is free
    assert folder.train("--find-lr", "--recover") == 2
    assert "leave --recover" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["simple", "advanced", "pytorch"])
def test_profilers_write_into_the_run_folder(folder, kind):
    assert folder.train("--profiler", kind, "--val-every", "2") == 0
    reports = "".join(path.read_text() for path in (folder / "run").glob("*profile*.txt"))
    assert ("CPU time total" if kind == "pytorch" else "training_step") in reports
    if kind == "pytorch":
        traces = [path.read_text() for path in (folder / "run").glob("*profile*.json")]
        assert traces and all('"aten::' in trace for trace in traces)


def test_a_row_of_metrics_says_how_fast_it_goes(folder):
    assert folder.train("--batch-size", "3") == 0
    rates = {name: list(map(float, folder.column(f"train/{name}").values())) for name in ("steps_per_s", "samples_per_s", "data_wait")}
    assert all(len(values) == 4 for values in rates.values())
    np.testing.assert_allclose(rates["samples_per_s"], 3 * np.array(rates["steps_per_s"]), rtol=1e-12)
    assert all(0 <= share < 1 for share in rates["data_wait"]) and min(rates["steps_per_s"]) > 0


@pytest.mark.slow
def test_the_precision_of_products_holds_for_the_run_alone(folder):
    (folder.path / "watch_precision.py").write_text(
        "import torch\n"
        "from stable_audio_tools.training.strategies.supervised import Supervised\n"
        "first = Supervised.loss\n"
        "def loss(self, model, batch):\n"
        "    open('seen', 'w').write(torch.get_float32_matmul_precision())\n"
        "    return first(self, model, batch)\n"
        "Supervised.loss = loss\n"
    )
    from stable_audio_tools.training.strategies.supervised import Supervised

    first = Supervised.loss
    try:
        assert folder.train("--plugins", "watch_precision", "--matmul-precision", "high", "--max-steps", "1") == 0
    finally:
        Supervised.loss = first
    assert Path("seen").read_text() == "high" and torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("text_to_audio", marks=pytest.mark.slow),
        pytest.param("autoencoder", marks=pytest.mark.exhaustive),
        pytest.param("language_model", marks=pytest.mark.exhaustive),
    ],
)
def test_a_compiled_run_has_the_files_and_the_numbers_of_another(folder, kind):
    folder.model = getattr(configs, kind)()
    assert folder.train("--val-every", "2", "--max-steps", "2", name="plain") == 0
    assert folder.train("--val-every", "2", "--max-steps", "2", "--compile", name="compiled") == 0
    plain, compiled = (load_file(folder / name / "exports" / "model.safetensors") for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(
        [float(value) for value in folder.column("train/loss", "compiled").values()],
        [float(value) for value in folder.column("train/loss", "plain").values()],
        rtol=2e-3,
    )
    saved = [torch.load(folder / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for name in ("plain", "compiled")]
    assert saved[0].keys() == saved[1].keys()
    assert folder.train("--recover", "--max-steps", "3", name="compiled") == 0  # without the flag


@pytest.mark.parametrize("command", ["check", "plan", "schema"])
@pytest.mark.slow
def test_every_command_that_reads_configs_takes_plugins(folder, command, capsys):
    plugin = f"my_sampler_of_{command}"
    (folder.path / f"{plugin}.py").write_text(
        "from typing import Literal\n"
        "from stable_audio_tools.training.strategies import STRATEGIES\n"
        "from stable_audio_tools.training.strategies.supervised import Supervised, SupervisedConfig\n"
        "class MineConfig(SupervisedConfig):\n"
        "    '''Mine.'''\n"
        f"    name: Literal['mine_{command}'] = 'mine_{command}'\n"
        "STRATEGIES.register(MineConfig)\n"
    )
    model = folder.write("model.json", configs.text_to_audio(strategy={"name": f"mine_{command}"}))
    subject = "model" if command == "schema" else model
    assert main([command, subject, "--plugins", plugin]) == 0
    if command == "schema":
        assert "mine_schema" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_a_plugin_that_fails_is_named(folder, command, capsys):
    (folder.path / "broken_plugin.py").write_text("1 / 0")
    assert main([command, "--model", "none", "--plugins", "broken_plugin"]) == 2
    assert "--plugins" in capsys.readouterr().err
