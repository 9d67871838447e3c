"""Every key of `defaults.ini` has an effect: each is given to real, very short runs, and what they leave behind is looked at.

`--config-file` is in test_args.py; `--strategy`, `--devices` and `--num-nodes` are in test_distributed.py; monitors, finders,
profilers and compilation are in test_train_flags.py.
"""

import csv
import json
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import wandb
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.cli.args import read_options
from stable_audio_tools.cli.main import main
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.training.strategies.supervised import Supervised

SGD = {"diffusion": {"optimizer": {"type": "SGD", "config": {"lr": 1.0}}}}
TESTED_ELSEWHERE = {"config_file", "strategy", "devices", "num_nodes", "project"}
TESTED_ELSEWHERE |= {"monitor", "monitor_mode", "save_best", "early_stopping_patience", "early_stopping_min_delta"}
TESTED_ELSEWHERE |= {"compile", "matmul_precision", "profiler", "find_lr"}
TESTED_ELSEWHERE |= {"max_bad_steps", "max_stall_minutes"}  # test_drills.py, test_fault_ranks.py


class Runs:
    """Runs `train` in a folder of its own; flags that come later win."""

    def __init__(self, folder):
        self.folder, self.run = folder, folder / "runs" / "run"

    def __call__(self, *argv, model=None):
        model = self.write("model.json", model or configs.text_to_audio())
        flags = [
            "--logger",
            "csv",
            "--num-workers",
            "0",
            "--val-every",
            "0",
            "--log-every",
            "1",
            "--max-steps",
            "1",
            "--accelerator",
            "cpu",
        ]
        return main(["train", "--model-config", model, "--save-dir", str(self.folder / "runs"), "--name", "run", *flags, *map(str, argv)])

    def write(self, name, value):
        (self.folder / name).write_text(json.dumps(value))
        return str(self.folder / name)

    def synthetic(self, name="data.json", **config):
        return self.write(name, {"dataset_type": "synthetic", **config})

    def rows(self, column, name="run"):
        """Step to value of a column of metrics.csv, where it has one."""
        with (self.folder / "runs" / name / "metrics.csv").open(newline="") as file:
            return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row.get(column)}

    def state(self):
        return json.loads((self.run / "run.json").read_text())

    def checkpoints(self):
        return sorted(int(path.stem[5:]) for path in (self.run / "checkpoints").glob("step=*.ckpt"))

    def exported(self, name="run"):
        return load_file(self.folder / "runs" / name / "exports" / "model.safetensors")

    def prompts(self):
        return {
            demo["prompt"] for demo in json.loads((self.run / "demos" / "step_00000000" / "demos.json").read_text()) if "prompt" in demo
        }


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Runs(tmp_path)


def test_every_option_is_tested():
    source = Path(__file__).read_text()
    assert [o.flag for o in read_options() if o.name not in TESTED_ELSEWHERE and f'"{o.flag}"' not in source] == []


# what is trained, and where it goes


@pytest.mark.slow
def test_configs_are_used_and_kept(train):
    demo = {"demo_every": 100, "demo_steps": 1, "demo_cond_from_batch": True, "num_demos": 2}
    model = configs.text_to_audio(demo=demo)
    bells, squares = (
        train.synthetic(instruments=["bell"], hold_out=0),
        train.synthetic("val.json", instruments=["square"], hold_out=0, num_items=8),
    )
    assert train("--dataset-config", bells, model=model) == 0
    assert all("bell" in prompt for prompt in train.prompts())
    assert json.loads((train.run / "config.json").read_text()) == model
    assert json.loads((train.run / "dataset.json").read_text()) == {"dataset_type": "synthetic", "instruments": ["bell"], "hold_out": 0}
    assert json.loads((train.run / "args.json").read_text())["dataset_config"] == bells

    assert train("--dataset-config", bells, "--val-dataset-config", squares, "--val-every", 1, "--name", "val", model=model) == 0
    train.run = train.folder / "runs" / "val"
    assert all("square" in prompt for prompt in train.prompts()) and set(train.rows("val/loss", "val")) == {1}


def test_name_and_save_dir_are_the_run_folder(train, tmp_path):
    assert train("--save-dir", tmp_path / "elsewhere", "--name", "mine") == 0
    assert (tmp_path / "elsewhere" / "mine" / "index.html").exists() and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_log_of_a_run_ends_with_the_run(train):
    assert train("--name", "first") == train("--name", "second") == 0
    assert "second" not in (train.folder / "runs" / "first" / "train.log").read_text()


@pytest.mark.slow
def test_wandb_without_an_account_logs_offline_and_says_so(train, tmp_path, monkeypatch, caplog):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text("")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert train("--logger", "wandb") == 0
    wandb.finish()
    assert "wandb has no account on this machine" in caplog.text and list(train.run.rglob("offline-run-*"))


@pytest.mark.slow
def test_none_and_csv_write_local_files_only(train):
    for kind in ("none", "csv"):
        assert train("--logger", kind, "--name", kind) == 0
        assert set(train.rows("train/loss", kind)) == {1}
        assert not {"wandb", "tensorboard"} & {path.name for path in (train.folder / "runs" / kind).iterdir()}


# how long, how much, how fast


@pytest.mark.slow
def test_steps_epochs_minutes_batches_and_accumulation_say_when_a_run_ends(train):
    data = train.synthetic(num_items=16, hold_out=0)
    expected = (
        (("--max-steps", 3), 3),
        (("--max-steps", 0, "--max-epochs", 1), 4),
        (("--max-steps", 0, "--max-epochs", 1, "--batch-size", 8), 2),
        (("--max-steps", 0, "--max-epochs", 1, "--accum-batches", 2), 2),
        (("--max-steps", 0, "--max-minutes", 1e-5), 1),
    )
    for name, (flags, steps) in enumerate(expected):
        assert train("--dataset-config", data, "--name", name, *flags) == 0
        assert json.loads((train.folder / "runs" / str(name) / "run.json").read_text())["step"] == steps, flags


@pytest.mark.slow
def test_one_seed_is_one_run(train):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train("--seed", seed, "--name", name) == 0
    assert train.rows("train/loss", "a") == train.rows("train/loss", "b") != train.rows("train/loss", "c")


@pytest.mark.slow
def test_workers_read_the_data_and_code_needs_permission(train, tmp_path, capsys):
    (tmp_path / "sounds").mkdir()
    for name in "abcd":
        soundfile.write(tmp_path / "sounds" / f"{name}.wav", 0.1 * np.random.default_rng(0).standard_normal(4000), 8000)
    (tmp_path / "module.py").write_text(
        "import os, pathlib\n"
        "def get_custom_metadata(info, audio):\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'pid{{os.getpid()}}').touch()\n"
        "    return {'prompt': 'hiss'}\n"
    )
    folder = {"id": "hiss", "path": str(tmp_path / "sounds"), "custom_metadata_module": str(tmp_path / "module.py")}
    data = train.write("data.json", {"dataset_type": "audio_dir", "datasets": [folder]})
    assert train("--dataset-config", data, "--num-workers", 1) == 2
    assert "--allow-code" in capsys.readouterr().err and not list(tmp_path.glob("pid*"))
    assert train("--dataset-config", data, "--num-workers", 1, "--allow-code") == 0
    assert {path.name for path in tmp_path.glob("pid*")} - {f"pid{os.getpid()}"}


def test_gradients_are_clipped_to_the_largest_norm(train):
    model = configs.text_to_audio(learning_rate=None, optimizer_configs=SGD, use_ema=False)
    del model["training"]["learning_rate"]
    assert train("--gradient-clip-val", 0.001, "--seed", 5, model=model) == 0
    assert train.rows("train/grad_norm")[1] > 0.01
    torch.manual_seed(5)
    before, after = create_model_from_config(model).state_dict(), train.exported()
    moved = torch.stack([(after[key] - before[key]).square().sum() for key in before]).sum().sqrt()
    torch.testing.assert_close(moved, torch.tensor(0.001), rtol=1e-2, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16), ("bf16-mixed", torch.float32)])
def test_precision_is_that_of_the_weights(train, precision, dtype):
    assert train("--precision", precision) == 0
    kinds = {tensor.dtype for key, tensor in train.exported().items() if key.startswith("model.") and tensor.is_floating_point()}
    assert dtype in kinds


@pytest.mark.slow
def test_validation_checkpoints_and_rows_come_when_they_are_due(train):
    flags = ("--max-steps", 6, "--val-every", 4, "--checkpoint-every", 2, "--save-top-k", 2, "--log-every", 3)
    data = train.synthetic(num_items=8, hold_out=0)
    assert train("--dataset-config", data, "--val-dataset-config", data, *flags) == 0
    assert set(train.rows("val/loss")) == {4, 6} and set(train.rows("train/loss")) == {3, 6}
    assert train.checkpoints() == [4, 6] and (train.run / "checkpoints" / "last.ckpt").exists()
    assert train("--name", "all", "--max-steps", 3, "--checkpoint-every", 1, "--save-top-k", -1) == 0
    train.run = train.folder / "runs" / "all"
    assert train.checkpoints() == [1, 2, 3]


@pytest.mark.parametrize("flags", [("--accelerator", "abacus"), ("--strategy", "chance"), ("--devices", "0"), ("--accelerator", "tpu")])
def test_a_machine_that_is_not_there_is_refused_before_anything_is_written(train, flags, capsys):
    assert train(*flags) == 2
    assert " ".join(flags) in capsys.readouterr().err and not (train.folder / "runs").exists()


def test_the_accelerator_is_where_it_runs(train):
    assert train("--accelerator", "cpu") == 0
    assert train.state()["device"] == "cpu"


def test_plugins_are_imported_first(train, tmp_path, monkeypatch):
    (tmp_path / "my_plugin_one.py").write_text("import pathlib; pathlib.Path('one').touch()")
    (tmp_path / "my_plugin_two.py").write_text("import pathlib; pathlib.Path('two').touch()")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert train("--plugins", "my_plugin_one, my_plugin_two") == 0
    assert Path("one").exists() and Path("two").exists()


def test_ctrl_c_before_training_is_status_130_without_a_traceback(train, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_plugin_three.py").write_text("raise KeyboardInterrupt")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert train("--plugins", "my_plugin_three") == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_what_a_strategy_says_of_itself_is_in_the_export(train, monkeypatch):
    monkeypatch.setattr(Supervised, "checkpoint_metadata", lambda self: {"taught_by": ["nobody"]})
    assert train() == 0
    with safe_open(train.run / "exports" / "model.safetensors", "pt") as file:
        header = file.metadata()
    assert header["taught_by"] == '["nobody"]' and header["train_step"] == "1" and json.loads(header["model_config"])


# weights to start from


@pytest.mark.slow
def test_training_starts_from_weights_of_any_kind(train, tmp_path):
    assert train("--max-steps", 2) == 0
    export = train.run / "exports" / "model.safetensors"
    raw = tmp_path / "raw.pt"
    torch.save(load_file(export), raw)
    model = configs.text_to_audio(learning_rate=1e-12, use_ema=False)
    for number, file in enumerate((export, raw, train.run / "checkpoints" / "last.ckpt")):
        assert train("--pretrained-ckpt-path", file, "--name", f"from{number}", "--seed", 9, model=model) == 0
        for key, value in train.exported(f"from{number}").items():
            torch.testing.assert_close(value, load_file(export)[key], rtol=1e-5, atol=1e-6)


def test_weights_that_fit_in_part_need_permission(train, tmp_path, capsys):
    weights = create_model_from_config(configs.text_to_audio()).state_dict()
    first = next(key for key in weights if key.startswith("model."))
    del weights[first]
    torch.save(weights, tmp_path / "part.pt")
    assert train("--pretrained-ckpt-path", tmp_path / "part.pt") == 2
    message = capsys.readouterr().err
    assert first in message and "--allow-partial" in message and not train.run.exists()
    assert train("--pretrained-ckpt-path", tmp_path / "part.pt", "--allow-partial") == 0


@pytest.mark.slow
def test_training_starts_from_a_base_with_adapters_merged(train, tmp_path, capsys):
    base = create_model_from_config(configs.text_to_audio()).state_dict()
    torch.save(base, tmp_path / "base.pt")
    layer = "model.transformer.layers.1.ff.ff.2"
    out, width = base[f"model.{layer}.weight"].shape
    parts = {"lora_A": torch.ones(2, width), "lora_B": torch.ones(out, 2)}
    named = {f"{layer}.parametrizations.weight.0.{name}": part for name, part in parts.items()}
    save_file(named, tmp_path / "lora.safetensors", {"lora_config": '{"rank": 2, "alpha": 1}'})
    still = configs.text_to_audio(learning_rate=1e-12, use_ema=False)
    files = [tmp_path / "base.pt", f"{tmp_path / 'lora.safetensors'}:0.5"]
    assert train(*(part for file in files for part in ("--pretrained-ckpt-path", file)), model=still) == 0
    base[f"model.{layer}.weight"] += 0.5
    for key, value in train.exported("run").items():
        torch.testing.assert_close(value, base[key], rtol=1e-5, atol=1e-6)
    assert train("--pretrained-ckpt-path", files[1], "--name", "other") == 2
    assert "name its base first: --pretrained-ckpt-path BASE --pretrained-ckpt-path ADAPTER" in capsys.readouterr().err


def latent_text_to_audio():
    """As `configs.text_to_audio`, in the latents of the autoencoder of `configs`."""
    model = configs.text_to_audio(demo={"demo_every": 100, "demo_steps": 1, "demo_cond": [{"prompt": "a bell"}]})
    body = configs.autoencoder()["model"]
    model["audio_channels"] = 2
    model["model"] |= {"io_channels": 4, "pretransform": {"type": "autoencoder", "config": body}}
    model["model"]["diffusion"]["config"]["io_channels"] = 4
    return model


@pytest.mark.slow
def test_the_pretransform_gets_its_weights_and_loses_its_weight_norm(train, tmp_path):
    codec = create_model_from_config(configs.autoencoder())
    torch.save(codec.state_dict(), tmp_path / "codec.pt")
    flags = ("--pretransform-ckpt-path", tmp_path / "codec.pt")
    assert train(*flags, model=latent_text_to_audio()) == 0
    for key, value in codec.state_dict().items():
        assert torch.equal(train.exported()[f"pretransform.model.{key}"], value), key
    found = {}
    for when in ("pre_load", "post_load"):
        assert train(*flags, "--name", when, "--remove-pretransform-weight-norm", when, model=latent_text_to_audio()) == 0
        found[when] = train.exported(when)
        assert not any("weight_g" in key for key in found[when])
    for key, value in found["pre_load"].items():
        if key.startswith("pretransform."):
            torch.testing.assert_close(value, found["post_load"][key])


# going on


@pytest.mark.slow
def test_recover_starts_a_run_and_goes_on_with_it(train, capsys):
    assert train("--recover", "--max-steps", 2) == 0
    assert train("--recover", "--max-steps", 4) == 0
    assert train.state()["step"] == 4 and train.state()["resumed"] == [2]
    assert set(train.rows("train/loss")) == {1, 2, 3, 4}


@pytest.mark.slow
@pytest.mark.parametrize("limit", [("--max-steps", 2), ("--max-steps", 0, "--max-epochs", 1)], ids=["steps", "epochs"])
def test_recover_of_a_finished_run_changes_nothing_and_succeeds(train, limit):
    data = train.synthetic(num_items=8, hold_out=0)
    assert train("--dataset-config", data, *limit) == 0
    weights = train.exported()
    assert train("--dataset-config", data, *limit, "--recover") == 0
    assert train.state()["step"] == 2 and train.state()["status"] == "finished" and train.state()["versions"]
    assert all(torch.equal(value, weights[key]) for key, value in train.exported().items())


@pytest.mark.slow
def test_recover_skips_a_damaged_checkpoint(train, capsys):
    assert train("--max-steps", 2, "--checkpoint-every", 1) == 0
    newest = train.run / "checkpoints" / "step=00000002.ckpt"  # last.ckpt is the same file
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    assert train("--recover", "--max-steps", 3) == 0
    assert train.state()["resumed"] == [1] and train.state()["step"] == 3


@pytest.mark.slow
def test_a_checkpoint_starts_another_run_that_recovers_from_its_own(train):
    assert train("--max-steps", 2, "--name", "first") == 0
    checkpoint = ("--ckpt-path", train.folder / "runs" / "first" / "checkpoints" / "last.ckpt")
    assert train(*checkpoint, "--recover", "--max-steps", 3) == 0
    assert train(*checkpoint, "--recover", "--max-steps", 4) == 0
    assert train.state()["resumed"] == [2, 3]


def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_written(train, capsys):
    assert train() == 0
    before = (train.run / "config.json").read_text()
    deeper = configs.text_to_audio()
    deeper["model"]["diffusion"]["config"]["depth"] = 3
    assert train("--recover", "--max-steps", 2, model=deeper) == 2
    message = capsys.readouterr().err
    assert "does not fit this training" in message and "layers.2" in message and "--pretrained-ckpt-path" in message
    assert (train.run / "config.json").read_text() == before


@pytest.mark.slow
def test_going_back_to_an_earlier_checkpoint_keeps_the_new_ones(train):
    assert train("--max-steps", 4, "--checkpoint-every", 1, "--save-top-k", -1) == 0
    first = train.run / "checkpoints" / "step=00000001.ckpt"
    assert train("--ckpt-path", first, "--max-steps", 3, "--checkpoint-every", 1, "--save-top-k", 2) == 0
    assert train.checkpoints() == [2, 3]


@pytest.mark.slow
def test_an_autoencoder_on_a_folder_shows_the_same_clips_and_validates_on_another(train, tmp_path):
    rng = np.random.default_rng(0)
    for folder, names in (("music", "abcde"), ("held", "xy")):
        (tmp_path / folder).mkdir()
        for name in names:
            soundfile.write(tmp_path / folder / f"{name}.wav", 0.1 * rng.standard_normal((rng.integers(1000, 9000), 2)), 8000)
    data, held = (
        train.write(f"{folder}.json", {"dataset_type": "audio_dir", "datasets": [{"id": folder, "path": str(tmp_path / folder)}]})
        for folder in ("music", "held")
    )
    model = configs.autoencoder(demo={"demo_every": 2, "max_demos": 3})
    flags = ("--dataset-config", data, "--max-steps", 4)
    assert train(*flags, model=model) == 0
    steps = sorted((train.run / "demos").iterdir())
    originals = [[path.read_bytes() for path in sorted(step.glob("*_original.wav"))] for step in steps]
    assert len(steps) == 3 and len(originals[0]) == 3 and originals[0] == originals[1] == originals[2]
    assert train.rows("val/loss") == {}
    assert train(*flags, "--val-dataset-config", held, "--val-every", 2, "--name", "val", model=model) == 0
    assert set(train.rows("val/loss", "val")) == {2, 4}
    titles = {demo["title"][3:4] for demo in json.loads((train.folder / "runs/val/demos/step_00000000/demos.json").read_text())}
    assert titles == {"x", "y"}


# disks that refuse


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_is_said_and_training_goes_on(train, caplog):
    (train.run / "checkpoints" / "step=00000002.ckpt").mkdir(parents=True)  # in the way
    assert train("--recover", "--max-steps", 3, "--checkpoint-every", 1, "--save-top-k", -1) == 0
    assert "step 2 is not saved: cannot save" in caplog.text
    assert (train.run / "checkpoints" / "step=00000003.ckpt").is_file() and train.state()["status"] == "finished"


def test_a_run_that_cannot_save_its_end_fails(train, capsys):
    (train.run / "checkpoints" / "step=00000002.ckpt").mkdir(parents=True)
    assert train("--recover", "--max-steps", 2, "--checkpoint-every", 1, "--save-top-k", -1) == 1
    message = capsys.readouterr().err
    assert "error: training failed: " in message and "step=00000002.ckpt" in message and "Traceback" not in message
    assert train.state()["status"] == "failed" and (train.run / "checkpoints" / "step=00000001.ckpt").is_file()


def test_a_file_size_limit_spoils_neither_the_training_nor_the_message(train, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        status = train("--max-steps", 2, "--checkpoint-every", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = capsys.readouterr().err
    assert status == 1 and "File too large" in message and "Traceback" not in message
    assert set(train.rows("train/loss")) == {1, 2} and train.state()["status"] == "failed"
    assert list((train.run / "checkpoints").iterdir()) == []
