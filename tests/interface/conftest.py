"""A sound, and a studio over small models of every kind."""

import pytest
import torch
from interface_models import make_runs

from stable_audio_tools.audio.io import save_audio
from stable_audio_tools.interface.shelf import Shelf
from stable_audio_tools.interface.studio import Studio


@pytest.fixture(scope="session")
def tone(tmp_path_factory):
    """0.2 s of a sine at 8 kHz."""
    path = tmp_path_factory.mktemp("sounds") / "tone.wav"
    save_audio(path, 0.5 * torch.sin(torch.arange(1600) / 3)[None], 8000)
    return path


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder of runs."""
    folder = tmp_path_factory.mktemp("runs")
    make_runs(folder)
    return folder


@pytest.fixture(scope="session")
def shelf():
    return Shelf(keep=10)


@pytest.fixture
def studio(shelf, runs, tmp_path):
    return Studio(shelf, runs, tmp_path / "out")


@pytest.fixture
def sent(studio, tone):
    """The path of the sound as a visitor has sent it."""
    path = studio.out / "uploads" / tone.name
    path.parent.mkdir(parents=True)
    path.write_bytes(tone.read_bytes())
    return str(path)
