"""The quickstart: a model trained by the README's first line is kept here and must keep its promises; a shorter training is run."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from stable_audio_tools.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
TRAINED = Path(__file__).parent / "data" / "quickstart.safetensors"
RECIPE = json.loads(TRAINED.with_suffix(".json").read_text())
DATASET = ROOT / "model_configs" / "quickstart" / "synthetic.json"


def evaluated(model, out, *argv):
    assert main(["evaluate", "--model", str(model), "--dataset-config", str(DATASET), "--out", str(out), *argv]) == 0
    return json.loads(out.read_text())


def share(report, source, what):
    return report["pitched"][source][what]["share"]


def test_the_kept_checkpoint_is_what_its_recipe_says():
    assert hashlib.sha256(TRAINED.read_bytes()).hexdigest() == RECIPE["sha256"]
    assert TRAINED.stat().st_size <= 12e6
    with safe_open(str(TRAINED), "pt") as file:
        assert (
            json.loads(file.metadata()["model_config"])["model"]
            == json.loads((ROOT / "model_configs" / "quickstart" / "text_to_audio.json").read_text())["model"]
        )


@pytest.mark.slow
def test_the_kept_checkpoint_plays_what_held_out_prompts_ask_for(tmp_path, capsys):
    report = evaluated(TRAINED, tmp_path / "report.json")
    assert share(report, "model", "pitch") >= 0.95
    assert share(report, "model", "instrument") >= 0.85  # the recipe has what this file scored when it was made
    assert share(report, "real sounds", "pitch") > 0.97 and share(report, "real sounds", "instrument") > 0.97
    assert share(report, "white noise", "pitch") < 0.2 and share(report, "white noise", "instrument") < 0.35
    assert "model" in capsys.readouterr().out


@pytest.mark.slow
def test_a_short_training_from_nothing_already_plays_the_notes(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--save-dir", str(tmp_path), "--max-steps", "500", "--max-minutes", "10"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = evaluated(tmp_path / "quickstart", tmp_path / "report.json", "--num-prompts", "24")
    assert share(report, "model", "pitch") >= 0.8  # 0.98 after 331 steps when this was written; instruments take longer
    assert (tmp_path / "quickstart" / "evaluation.json").exists()
