"""Training from tar files: the very losses of the same files in a folder, whole, interrupted, or drawn with replacement."""

from __future__ import annotations

import json
from pathlib import Path

import configs
import pytest
from audio_files import signal, write
from tar_files import packed

from stable_audio_tools.cli.main import main

RATE = configs.SAMPLE_RATE


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Config files by name: a folder, and one tar file of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    audio, tars = tmp_path / "audio", tmp_path / "tars"
    for number in range(8):
        write(audio / f"{number}.wav", signal(0.2 + number / 20, RATE, 2, number), RATE)
        (audio / f"{number}.txt").write_text(f"clip {number}")
    tars.mkdir()
    (tars / "x.tar").write_bytes(packed([(path.name, path.read_bytes()) for path in sorted(audio.iterdir())]))
    place = {"datasets": [{"id": "set", "path": str(tars)}], "dataset_type": "wds"}
    documents = {
        "folder": {"dataset_type": "audio_dir", "datasets": [{"id": "set", "path": str(audio)}]},
        "tars": {**place, "resampled_shards": False},
        "draws": {**place, "epoch_steps": 4},
    }
    for name, document in documents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return tmp_path


def train(root: Path, dataset: str, name: str, steps: int, *flags: str) -> list[float]:
    """The losses of a run; one that is there goes on."""
    (root / "model.json").write_text(json.dumps(configs.text_to_audio()))
    command = ["train", "--model-config", str(root / "model.json"), "--dataset-config", str(root / f"{dataset}.json"), "--recover"]
    command += ["--save-dir", str(root / "runs"), "--name", name, "--max-steps", str(steps), "--batch-size", "2", "--logger", "none"]
    command += ["--accelerator", "cpu", "--log-every", "1", "--num-workers", "0", *flags]
    assert main(command) == 0
    header, *rows = (root / "runs" / name / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("train/loss")
    return [float(row.split(",")[column]) for row in rows if row.split(",")[column]]


@pytest.mark.slow
def test_losses_are_those_of_the_folder(data):
    from_folder, from_tars = (train(data, name, name, 6) for name in ("folder", "tars"))
    assert len(from_folder) == 6 and from_tars == from_folder


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["tars", "draws"])
def test_a_run_goes_on_exactly(data, dataset):
    whole = train(data, dataset, "whole", 10)
    train(data, dataset, "halves", 3)
    assert train(data, dataset, "halves", 10, "--num-workers", "2") == whole
