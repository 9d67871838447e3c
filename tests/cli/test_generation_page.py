"""docs/generation.md: its commands and its snippet run, and it leaves out no flag and no sampler."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from stable_audio_tools.audio.io import probe
from stable_audio_tools.cli.generate import configure
from stable_audio_tools.cli.main import main
from stable_audio_tools.diffusion.samplers import SAMPLERS

PAGE = (Path(__file__).parents[2] / "docs" / "generation.md").read_text()
RUNS = {"quickstart": "text_to_audio", "inpainting": "inpainting", "lm": "language_model", "vae": "autoencoder"}
ELSEWHERE = {"--help", "--plugins", "--latent-noise", "--num-quantizers"}  # their help says all


def blocks(language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL))


@pytest.mark.slow
def test_the_commands_and_the_snippet_run(tmp_path, models, monkeypatch):
    for name, kind in RUNS.items():
        (tmp_path / "runs" / name / "exports").mkdir(parents=True)
        shutil.copy(models(kind), tmp_path / "runs" / name / "exports" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    for command in re.findall(r"cat > (?s:.*?)\nEND\n|.+\n", blocks("bash") + "\n"):
        program, *arguments = shlex.split(command) if command.startswith("stable-audio-tools") else ("bash", "-euc", command)
        assert (subprocess.call([program, *arguments]) if program == "bash" else main(arguments)) == 0, command
    exec(blocks("python"), {})
    made = {str(path.relative_to(tmp_path)): probe(path) for path in tmp_path.rglob("*") if path.suffix in (".wav", ".flac", ".ogg")}
    assert {name: round(info.seconds, 3) for name, info in made.items()} == {
        "bell.wav": 0.256,
        "bell_again.wav": 0.256,
        "bell_python.wav": 0.256,
        "varied.wav": 0.256,
        "two/" + next(name for name in os.listdir(tmp_path / "two") if name.startswith("a_bell") and name.endswith("flac")): 0.256,
        "two/" + next(name for name in os.listdir(tmp_path / "two") if name.startswith("a_saw") and name.endswith("flac")): 0.256,
        "fixed.wav": 0.256,
        "longer.wav": 0.4,
        "sung.ogg": 0.5,
        "heard/bell_reconstructed.wav": 0.256,
        "heard/fixed_reconstructed.wav": 0.256,
        "many/bell.wav": 0.2,
        "many/a_saw_playing_a3_seed8.wav": 0.256,
    }


def test_the_page_names_every_flag_and_sampler():
    parser = argparse.ArgumentParser()
    configure(parser)
    flags = {action.option_strings[-1] for action in parser._actions}
    missing = {flag for flag in flags - ELSEWHERE if not re.search(rf"{flag}\b", PAGE)}
    assert not missing
    assert not {name for name in SAMPLERS if f"`{name}`" not in PAGE}
    options = {option for sampler in SAMPLERS.values() for option in sampler.options}
    assert not {option for option in options if f"`{option}`" not in PAGE}
