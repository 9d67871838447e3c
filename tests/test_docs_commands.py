"""The commands of the documentation, run as a newcomer would."""

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


@pytest.mark.slow
def test_from_a_folder_of_audio_to_training(tmp_path):
    (tmp_path / "my_audio").mkdir()
    (tmp_path / "model_configs").symlink_to(ROOT / "model_configs")
    for name, hertz in {"low": 110, "middle": 440, "high": 1760, "higher": 3520}.items():
        time = torch.arange(3 * 44100) / 44100
        save_audio(tmp_path / "my_audio" / f"{name}.wav", 0.5 * torch.sin(2 * torch.pi * hertz * time).repeat(2, 1), 44100)
        (tmp_path / "my_audio" / f"{name}.txt").write_text(f"a {name} tone")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for _ in range(2):  # every command may be repeated
        done = subprocess.run(
            ["bash", "-euc", first_commands("data.md")],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "WANDB_MODE": "disabled", "XDG_CACHE_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert (tmp_path / "runs" / "diffusion" / "exports" / "model.safetensors").is_file()
