"""What a small file can make a worker hold: bounded, whatever the file says or unpacks to."""

import numpy as np
import soundfile
from audio_files import signal, write

from stable_audio_tools.data import audio_dir, stretches
from stable_audio_tools.data.dataset import create_dataloader_from_config

RATE = 8000


def served(folder, **options):
    config = {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(folder)}], "drop_last": False, **options}
    loader = create_dataloader_from_config(config, 2, 800, RATE, 1, 0)
    names = {item["relpath"] for _, metadata in loader for item in metadata}
    return names, {path.rpartition("/")[2]: cause for path, cause in loader.faults.items()}


def padded_with_silence(path, seconds):
    """A FLAC of a tone with much silence after it, which takes next to no bytes."""
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        file.write(signal(0.5, RATE, 1))
        file.write(np.zeros((round(seconds * RATE), 1), np.float32))


def test_a_file_that_unpacks_to_more_than_may_be_held_is_named_and_another_served(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_dir, "HELD_SAMPLES", 10 * RATE)
    write(tmp_path / "good.wav", signal(0.5, RATE, 1), RATE)
    padded_with_silence(tmp_path / "bomb.flac", 20)
    assert (tmp_path / "bomb.flac").stat().st_size < 20_000
    names, faults = served(tmp_path, remove_silence=True)
    assert names == {"good.wav"}
    assert faults.keys() == {"bomb.flac"}
    assert "too long for remove_silence, which holds whole files in memory; cut the file" in faults["bomb.flac"]


def test_silence_is_searched_in_blocks_of_bounded_size(tmp_path, monkeypatch):
    read, sizes = stretches.read_part, []

    def noted(path, info, rate, start, stop):
        sizes.append(stop - start)
        return read(path, info, rate, start, stop)

    monkeypatch.setattr(stretches, "read_part", noted)
    monkeypatch.setattr(stretches, "LARGEST_BLOCK", 1 << 17)
    padded_with_silence(tmp_path / "bomb.flac", 120)
    names, faults = served(tmp_path, trim_silence="end")
    assert names == {"bomb.flac"} and not faults
    assert max(sizes) == 1 << 17
