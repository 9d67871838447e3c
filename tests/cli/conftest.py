"""What tests of commands share: tiny models in files, and `generate` and `export` as a user runs them."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.cli.main import main
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_model


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Gives a file with the model of a config that says something, since a fresh one's last layer is zero."""
    folder = tmp_path_factory.mktemp("models")

    def save(config: dict[str, Any]) -> str:
        torch.manual_seed(0)
        model = create_model_from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        path = folder / f"{len(list(folder.iterdir()))}.safetensors"
        save_model(path, model, config)
        return str(path)

    return save


@pytest.fixture(scope="session")
def models(saved):
    """Gives the file of a tiny model of the kind that a function of `configs` describes."""
    return cache(lambda kind: saved(getattr(configs, kind)()))


@pytest.fixture
def generate(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder; gives the status, the files written, and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = main(["generate", "--device", "cpu", *arguments])
        out, err = capsys.readouterr()
        return status, [Path(line) for line in out.splitlines()], err

    return call


@pytest.fixture
def export(tmp_path, monkeypatch, capsys, caplog):
    """Runs the command in an empty folder; gives the status, the files written, and what was said beside."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")

    def call(*arguments):
        status = main(["export", *arguments])
        out, err = capsys.readouterr()
        return status, [Path(line) for line in out.splitlines()], caplog.text + err

    return call
