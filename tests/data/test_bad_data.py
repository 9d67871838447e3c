"""Goal R8: 15 kinds of bad data among 100 good files: every good file is served once an epoch, every bad one named once with its cause."""

import io
import json
import logging
import os
import subprocess
import sys
import tarfile
from collections import Counter

import numpy as np
import pytest
from audio_files import BAD, make_bad, signal, write
from configs import text_to_audio

from stable_audio_tools.data.dataset import create_dataloader_from_config

RATE, LENGTH = 8000, 1600
KINDS = {  # goal R8's words: a file of `audio_files.BAD`, in as far as it is audio
    "0 bytes": "empty.wav",
    "cut WAV": "cut.wav",
    "cut FLAC": "cut.flac",
    "cut MP3": "cut.mp3",
    "wrong extension": "flac_inside.wav",
    "NaN samples": "nan.wav",
    "all silent": "silent.wav",
    "1 sample": "one_sample.wav",
    "0 channels": "no_channels.wav",
    "9 channels": "nine_channels.wav",
    "10 h header lie": "ten_hours.wav",
    "unreadable": "gone.wav",  # a link to nowhere, which no user can read
}
USABLE = ("8 kHz", "vanishing file", "bad JSON")  # of which the audio is good, or was


def mixed(root, scratch):
    """100 good files, and one of each kind; the names of the bad ones."""
    for number in range(100):
        write(root / f"part {number % 3}" / f"{number:03d}.wav", signal(0.2 + 0.003 * number, 16000, 1, number), 16000)
    for name in KINDS.values():
        if name in BAD:
            make_bad(root / "bad", scratch, name)
    (root / "bad" / "gone.wav").symlink_to("nowhere.wav")
    write(root / "odd" / "eight.wav", signal(0.3, 8000, 1, 500), 8000)
    write(root / "odd" / "vanishing.wav", signal(0.3, 16000, 1, 501), 16000)
    write(root / "odd" / "described.wav", signal(0.3, 16000, 1, 502), 16000)
    (root / "odd" / "described.json").write_text('{"prompt": ')


def loader(root, workers=0, **options):
    config = {"dataset_type": "audio_dir", "datasets": [{"id": "mixed", "path": str(root)}], "drop_last": False, **options}
    return create_dataloader_from_config(config, 8, LENGTH, RATE, audio_channels=1, num_workers=workers)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_every_good_file_is_served_once_an_epoch_and_every_bad_one_named_once(tmp_path, caplog, workers):
    root = tmp_path / "mixed"
    mixed(root, tmp_path)
    with caplog.at_level(logging.WARNING):
        batches = loader(root, workers)
        (root / "odd" / "vanishing.wav").unlink()
        served = [Counter(item["relpath"] for _, metadata in batches for item in metadata) for _ in range(2)]
    batches.close()

    good = {f"part {number % 3}/{number:03d}.wav" for number in range(100)} | {"odd/eight.wav", "odd/described.wav"}
    for epoch in served:
        assert epoch.keys() == good
        assert sum(epoch.values()) == len(good) + 1  # in place of the file that vanished stands another one, told below
    for kind, name in KINDS.items():
        lines = [line for line in caplog.text.splitlines() if f"/{name}: " in line]
        assert len(lines) == 1, kind
        assert BAD[name][1] in lines[0] if name in BAD else "broken link" in lines[0], kind
    assert caplog.text.count("vanishing.wav: no such file") == 1 and batches.faults.keys() == {str(root / "odd" / "vanishing.wav")}
    assert caplog.text.count("described.json:1: not valid JSON") == 1
    assert len(KINDS) + len(USABLE) == 15


def test_latents_that_are_no_arrays_are_named_and_the_rest_served(tmp_path, caplog):
    for number in range(20):
        np.save(tmp_path / f"{number:02d}.npy", np.random.default_rng(number).standard_normal((4, 8)).astype("f4"))
        (tmp_path / f"{number:02d}.json").write_text(json.dumps({"prompt": str(number), "seconds_total": 1.0}))
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "objects.json").write_text("{}")
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "text.json").write_text("{}")
    config = {"dataset_type": "pre_encoded", "datasets": [{"id": "x", "path": str(tmp_path)}], "drop_last": False}
    with caplog.at_level(logging.WARNING):
        batches = create_dataloader_from_config(config, 8, 64, RATE, num_workers=0)
        served = Counter(item["prompt"] for _, metadata in batches for item in metadata)
    assert served == Counter(map(str, range(20)))
    assert caplog.text.count("objects.npy: ") == caplog.text.count("text.npy: ") == 1


def test_the_good_members_of_a_cut_tar_file_are_served(tmp_path, caplog):
    scratch, shards = tmp_path / "scratch", tmp_path / "shards"
    shards.mkdir()
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as file:
        for number in range(10):
            file.add(write(scratch / f"{number}.wav", signal(0.2, RATE, 1, number), RATE), arcname=f"{number}.wav")
    (shards / "cut.tar").write_bytes(whole.getvalue()[: len(whole.getvalue()) * 2 // 3])
    config = {
        "dataset_type": "wds",
        "resampled_shards": False,
        "drop_last": False,
        "cache_dir": str(tmp_path / "cache"),
        "datasets": [{"id": "x", "path": str(shards)}],
    }
    with caplog.at_level(logging.WARNING):
        batches = create_dataloader_from_config(config, 4, LENGTH, RATE, audio_channels=1, num_workers=0)
        served = [Counter(item["relpath"] for _, metadata in batches for item in metadata) for _ in range(2)]
    assert 4 <= len(served[0]) < 10 and set(served[0].values()) == {1} and served[0] == served[1]
    assert "cut.tar" in caplog.text


@pytest.mark.slow
def test_a_run_on_nothing_but_bad_files_ends_at_once_with_their_number_and_causes(tmp_path):
    for name in BAD:
        make_bad(tmp_path / "in", tmp_path, name)
    (tmp_path / "model.json").write_text(json.dumps(text_to_audio()))
    (tmp_path / "data.json").write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(tmp_path / "in")}]}))
    command = [sys.executable, "-m", "stable_audio_tools", "train", "--model-config", str(tmp_path / "model.json")]
    command += ["--dataset-config", str(tmp_path / "data.json"), "--save-dir", str(tmp_path / "runs"), "--logger", "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 2, done.stderr
    assert f"none of {len(BAD)} audio files can be used; the first causes:" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
