"""What `check --data` finds in data of every kind: clipped and duplicate files, latents, tar files, and items as the model gets them."""

import io
import json
import math
import tarfile

import numpy as np
import pytest
import torch
from audio_files import signal, write

from stable_audio_tools.data.audio_dir import AudioDirConfig
from stable_audio_tools.data.check import check_data
from stable_audio_tools.data.dataset import parse_dataset_config
from stable_audio_tools.data.needs import Need
from stable_audio_tools.data.preview import preview, write_clips
from stable_audio_tools.data.synthetic import SyntheticConfig


def audio_dir(*paths):
    return AudioDirConfig.model_validate({"datasets": [{"id": path.name, "path": str(path)} for path in paths]})


def test_a_waveform_that_stays_at_full_scale_is_clipped_and_a_peak_is_not(tmp_path):
    sine = np.sin(np.arange(16000) * 2 * np.pi * 40 / 8000)[:, None]
    write(tmp_path / "peak.wav", sine.astype("f4"), 8000)  # normalised: touches full scale
    write(tmp_path / "clipped.wav", np.clip(1.5 * sine, -1, 1).astype("f4"), 8000)
    write(tmp_path / "loud.wav", (1.5 * sine).astype("f4"), 8000, subtype="FLOAT")  # is limited where it is served
    (folder,) = check_data(audio_dir(tmp_path), thorough=True).folders
    expected = 16000 * (1 - 2 / math.pi * math.asin(1 / 1.5))
    found = {path.rsplit("/")[-1]: samples for path, samples in folder.clipped}
    assert found.keys() == {"clipped.wav", "loud.wav"}
    assert all(samples == pytest.approx(expected, rel=0.02) for samples in found.values())
    assert any("clipped.wav: " in line for line in folder.lines())
    assert check_data(audio_dir(tmp_path)).folders[0].clipped == ()


def test_the_same_samples_are_found_in_other_folders_and_formats(tmp_path):
    one, other = (np.round(signal(0.5, 8000, seed=seed) * 2**15) / 2**15 for seed in (1, 2))
    write(tmp_path / "a" / "one.wav", one, 8000)
    write(tmp_path / "a" / "one_faster.wav", one, 16000)
    write(tmp_path / "a" / "other.wav", other, 8000)
    write(tmp_path / "b" / "copy.flac", one, 8000)
    write(tmp_path / "b" / "shorter.wav", one[:-1], 8000)
    report = check_data(audio_dir(tmp_path / "a", tmp_path / "b"), thorough=True)
    assert report.duplicates == ((str(tmp_path / "a" / "one.wav"), str(tmp_path / "b" / "copy.flac")),)
    assert "duplicates: 1 files hold the same samples as another one" in report.lines()
    json.dumps(report.to_dict())
    again = check_data(audio_dir(tmp_path / "a", tmp_path / "b"), thorough=True)  # now from the cache
    assert again == report
    assert check_data(audio_dir(tmp_path / "a")).duplicates == ()


def test_silent_files_are_counted_apart_from_broken_ones(tmp_path):
    write(tmp_path / "good.wav", signal(0.2, 8000), 8000)
    write(tmp_path / "silent.wav", np.zeros((4000, 1), "f4"), 8000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    (folder,) = check_data(audio_dir(tmp_path), thorough=True).folders
    assert (folder.files, folder.silent, len(folder.bad)) == (1, 1, 2)
    assert "  bad: 2, of which 1 silent" in folder.lines()


def test_progress_is_told_up_to_the_end(tmp_path):
    for number in range(5):
        write(tmp_path / f"{number}.wav", signal(0.1, 8000), 8000)
    told = []
    check_data(audio_dir(tmp_path), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (5, 5) and told == sorted(told)


def test_synthetic_sounds_are_counted():
    report = check_data(SyntheticConfig(num_items=7200, seconds=(0.5, 1.5), instruments=("sine",), notes="A4", hold_out=0.0))
    (folder,) = report.folders
    assert (folder.files, folder.captioned, folder.hours, folder.seconds) == (7200, 7200, 2.0, (0.5, 1.0, 1.5))
    assert "3 combinations" in folder.path and report.usable
    assert check_data(SyntheticConfig()).folders[0].seconds is None  # as long as the model's clips


def latents(frames, channels=4):
    return np.random.default_rng(0).standard_normal((channels, frames)).astype("f4")


def test_stored_latents_are_counted(tmp_path):
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", latents(10 + number))
        about = {"prompt": "a hiss", "seconds_total": 2.0} if number else {"seconds_total": 2.0}
        (tmp_path / f"{number}.json").write_text(json.dumps(about))
    (tmp_path / "bad.npy").write_bytes(b"no array")
    (tmp_path / "bad.json").write_text("{}")
    config = parse_dataset_config({"dataset_type": "pre_encoded", "datasets": [{"id": "x", "path": str(tmp_path)}]})
    (folder,) = check_data(config).folders
    assert (folder.files, folder.captioned, folder.uncaptioned, len(folder.bad), folder.channels) == (3, 2, 1, 1, 4)


def tar(path, members):
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def wav(folder, seed):
    return write(folder / f"{seed}.wav", signal(0.2, 8000, seed=seed), 8000).read_bytes()


def test_tar_files_are_counted(tmp_path):
    scratch, shards = tmp_path / "scratch", tmp_path / "shards"
    shards.mkdir()
    tar(shards / "0.tar", {"a.wav": wav(scratch, 1), "a.txt": b"a sound", "b.wav": wav(scratch, 2)})
    tar(shards / "1.tar", {"c.wav": wav(scratch, 1), "d.wav": b"RIFF"})
    config = parse_dataset_config(
        {"dataset_type": "wds", "cache_dir": str(tmp_path / "cache"), "datasets": [{"id": "x", "path": str(shards)}]}
    )
    report = check_data(config, thorough=True)
    (folder,) = report.folders
    assert (folder.files, folder.captioned, len(folder.bad)) == (3, 1, 1)
    assert report.duplicates == ((f"{shards}/0.tar/a.wav", f"{shards}/1.tar/c.wav"),)


def test_a_preview_shows_the_first_items_of_training_and_what_is_read_of_them(tmp_path):
    for number in range(6):
        write(tmp_path / "in" / f"{number}.wav", signal(0.3, 8000, 1, seed=number), 8000)
        (tmp_path / "in" / f"{number}.txt").write_text(f"sound {number}")
    dataset = audio_dir(tmp_path / "in").build(sample_size=4000, sample_rate=8000, audio_channels=1)
    needs = [Need("prompt", ("prompt",), "text"), Need("bpm", ("bpm", "tempo"), "a number")]
    items = [*preview(dataset, 3, needs, seed=5)]
    assert len({item.conditions["prompt"] for item in items}) == 3
    assert all(item.conditions == {"prompt": item.sample.metadata["prompt"], "bpm": None} for item in items)
    assert f'  prompt reads "{items[0].conditions["prompt"]}"' in items[0].lines() and "  bpm reads nothing" in items[0].lines()
    assert [*preview(dataset, 3, needs, seed=5)][1].sample.audio.equal(items[1].sample.audio)
    assert len([*preview(dataset, 99, needs)]) == 6

    write_clips(items, tmp_path / "out", 8000)
    files = sorted((tmp_path / "out").glob("*.wav"))
    assert len(files) == 3
    from stable_audio_tools.audio.io import load_audio

    audio, rate = load_audio(files[0])
    assert rate == 8000 and audio.shape == (1, 2400)  # without the padding
    torch.testing.assert_close(audio, items[0].sample.audio[:, :2400], atol=2**-15, rtol=0)
    assert json.loads(files[0].with_suffix(".json").read_text())["conditions"]["prompt"] == items[0].conditions["prompt"]
