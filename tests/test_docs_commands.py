"""The commands of the documentation, run as a newcomer would."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stable_audio_tools.audio.io import save_audio

ROOT = Path(__file__).parents[1]


def first_commands(page: str) -> str:
    found = re.search(r"```bash\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert found
    return found[1]


def follow(page: str, folder: Path, times: int = 2) -> None:
    """Run the first commands of a page in `folder`, by default twice: every command may be repeated."""
    if not (folder / "model_configs").exists():
        (folder / "model_configs").symlink_to(ROOT / "model_configs")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for _ in range(times):
        done = subprocess.run(
            ["bash", "-euc", first_commands(page)],
            cwd=folder,
            env={**os.environ, "PATH": path, "WANDB_MODE": "disabled", "XDG_CACHE_HOME": str(folder / "cache")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def write_tones(folder: Path) -> None:
    """Four sounds with captions."""
    folder.mkdir()
    for name, hertz in {"low": 110, "middle": 440, "high": 1760, "higher": 3520}.items():
        time = torch.arange(3 * 44100) / 44100
        save_audio(folder / f"{name}.wav", 0.5 * torch.sin(2 * torch.pi * hertz * time).repeat(2, 1), 44100)
        (folder / f"{name}.txt").write_text(f"a {name} tone")


@pytest.mark.slow
def test_from_a_folder_of_audio_to_training(tmp_path):
    write_tones(tmp_path / "my_audio")
    follow("data.md", tmp_path)
    assert (tmp_path / "runs" / "diffusion" / "exports" / "model.safetensors").is_file()


@pytest.mark.slow
def test_from_a_run_to_what_is_published(tmp_path):
    follow("export.md", tmp_path, times=1)
    names = {"README.md", "model.safetensors", "model_config.json", "demos"}
    assert {path.name for path in (tmp_path / "published").iterdir()} == names
    card = (tmp_path / "published" / "README.md").read_text()
    assert "| Train steps | 4 |" in card and "| Weights | averaged (EMA), fp16 |" in card and "## Training data" in card
    assert str(tmp_path) not in card
    assert (tmp_path / "online" / "model.safetensors").is_file() and (tmp_path / "vae.ckpt").is_file()


@pytest.mark.slow
def test_from_training_to_figures_and_back(tmp_path):
    write_tones(tmp_path / "my_audio")
    follow("evaluation.md", tmp_path)
    report = json.loads((tmp_path / "vae.json").read_text())
    assert {"frechet_log_mel", "kernel_log_mel", "mrstft", "si_sdr"} <= {metric["name"] for metric in report["metrics"]}
    assert json.loads((tmp_path / "runs" / "vae" / "evaluation.json").read_text()) == report
    watched = tmp_path / "runs" / "watched"
    lines = [json.loads(line) for line in (watched / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10] and (watched / "exports" / "best.safetensors").is_file()
    assert len(list((tmp_path / "given_back").iterdir())) == 4


@pytest.mark.slow
def test_from_two_runs_to_a_page_that_compares_them(tmp_path):
    follow("report.md", tmp_path, times=1)
    page = (tmp_path / "comparison.html").read_text()
    assert "args · batch_size</th><td>2</td><td>4</td>" in page
    assert "FLOP" in (tmp_path / "runs" / "small_batch" / "index.html").read_text()
