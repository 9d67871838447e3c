"""Looking over a folder: good files among every kind of bad ones, listings, captions, and folders with nothing to use."""

import logging
import os

import numpy as np
import pytest
from audio_files import BAD, FORMATS, make, make_bad, signal, write

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.audio_dir import AudioDirConfig
from stable_audio_tools.data.check import check_data
from stable_audio_tools.data.scan import Limits, report, scan_folder

RARE_RATES = {"opus": 48000}


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    """A good file of every format, some with captions, and every kind of bad file."""
    root, scratch = tmp_path_factory.mktemp("messy"), tmp_path_factory.mktemp("scratch")
    for number, kind in enumerate(FORMATS):
        path = make(scratch, kind, 0.3 + 0.4 * number, RARE_RATES.get(kind, 22050), 1 + number % 2, number)
        target = root / f"part {number % 3}" / f"{kind}{path.suffix.upper() if number % 2 else path.suffix}"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
        if number % 2:
            target.with_suffix(".txt").write_text(f"sound {number}")
    for name in BAD:
        make_bad(root / "bad", scratch, name)
    (root / "bad" / "gone.wav").symlink_to("nowhere.wav")
    for name in ("._hidden.wav", ".hidden.wav", ".folder/a.wav"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_good_files_are_found_and_bad_ones_named_once_with_their_cause(messy, caplog):
    scan = scan_folder(messy)
    assert [file.relpath for file in scan.files] == sorted(file.relpath for file in scan.files)
    assert {os.path.splitext(os.path.basename(file.relpath))[0] for file in scan.files} == set(FORMATS)
    causes = {os.path.basename(path): cause for path, cause in scan.bad}
    assert causes.keys() == BAD.keys() | {"gone.wav"}
    assert "broken link" in causes["gone.wav"]
    for name, (_, cause) in BAD.items():
        assert cause in causes[name], name
    assert len(scan.bad) == len(causes)

    with caplog.at_level(logging.INFO):
        report(scan)
    assert "24 of 35 files cannot be used" in caplog.text
    assert "and 4 more" in caplog.text
    assert "6 of 11 files have no caption; their prompt is empty" in caplog.text
    assert scan.others == {".txt": 5}


def test_the_figures_for_people_and_machines(messy):
    config = AudioDirConfig.model_validate({"datasets": [{"id": "mess", "path": str(messy)}]})
    made = check_data(config, sample_rate=44100)
    (folder,) = made.to_dict()["folders"]
    assert made.usable and folder["files"] == 11 and folder["captioned"] == 5 and len(folder["bad"]) == 24
    assert folder["sample_rates"] == {"22050 Hz": 10, "48000 Hz": 1}
    assert folder["upsampled"] == 10
    assert sum(folder["lengths"].values()) == sum(folder["formats"].values()) == sum(folder["channels"].values()) == 11
    assert folder["hours"] == pytest.approx(sum(0.3 + 0.4 * number for number in range(11)) / 3600, rel=0.05)
    text = "\n".join(made.lines())
    assert "11 of 35 audio files can be used" in text and "captions: 5 with, 6 without" in text
    assert "10 files are below the model's sample rate" in text
    assert "bad: " in text and "(0 bytes)" in text


def test_limits(tmp_path):
    quiet = write(tmp_path / "a" / "quiet.wav", signal(0.3, 8000) * 1e-3, 8000)
    assert "silent: no sample above -40 dB" in scan_folder(tmp_path, Limits(silence_db=-40)).bad[0].cause
    assert len(scan_folder(tmp_path, Limits(silence_db=-90)).files) == 1
    assert len(scan_folder(tmp_path, Limits(silence_db=None)).files) == 1
    assert "too short: 2400 samples, 0.300 s of at least 0.5 s" in scan_folder(tmp_path, Limits(min_seconds=0.5)).bad[0].cause
    assert "2 channels, of which 4 cannot be made" in scan_folder(tmp_path, Limits(silence_db=None, channels=4)).bad[0].cause
    assert quiet.exists()


def test_sound_anywhere_in_a_long_file_is_found_and_damage_when_asked(tmp_path):
    frames = np.zeros((200_000, 1), np.float32)
    frames[150_000] = 0.5
    write(tmp_path / "click.flac", frames, 8000)
    loud = signal(20.0, 8000, 1)
    loud[50_000] = np.inf
    write(tmp_path / "damaged.wav", loud, 8000, subtype="FLOAT")
    assert len(scan_folder(tmp_path).files) == 2
    scan = scan_folder(tmp_path, thorough=True)
    assert [file.relpath for file in scan.files] == ["click.flac"]
    assert "first at 6.25 s" in scan.bad[0].cause


def test_captions_are_counted_and_the_table_checked(tmp_path, caplog):
    for name in ("a", "b", "c"):
        write(tmp_path / "sub" / f"{name}.wav", signal(0.1, 8000), 8000)
    (tmp_path / "metadata.csv").write_text("file_name,prompt\nsub/a.wav,one\nsub/b.wav,two\nsub/z.wav,three\n")
    (tmp_path / "sub" / "b.TXT").write_text("from text")
    (tmp_path / "sub" / "c.json").write_text("{")
    scan = scan_folder(tmp_path)
    assert [file.metadata for file in scan.files] == [{"prompt": "one"}, {"prompt": "from text"}, {}]
    assert scan.uncaptioned == 1
    report(scan)
    assert "sub/z.wav, which is no audio file here" in caplog.text
    assert "c.json:1: not valid JSON" in caplog.text


def test_a_link_in_a_circle_is_followed_once(tmp_path):
    write(tmp_path / "in" / "a.wav", signal(0.1, 8000), 8000)
    (tmp_path / "in" / "again").symlink_to(tmp_path)
    assert len(scan_folder(tmp_path).files) == 1


def failing(tmp_path, what):
    if what == "missing":
        return tmp_path / "missing"
    if what == "a file":
        return make(tmp_path, "wav", 0.1)
    if what == "locked":
        tmp_path.chmod(0)
        if os.access(tmp_path, os.R_OK):
            pytest.skip("this user may read everything")
    if what == "all bad":
        for name in BAD:
            make_bad(tmp_path / "in", tmp_path.parent, name)
    if what == "no audio":
        (tmp_path / "notes.txt").write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    "what, message",
    [
        ("missing", "no such folder\n.*relative to where the program starts"),
        ("a file", "a file, not a folder of audio"),
        ("locked", "cannot list the folder: Permission denied"),
        ("empty", "no audio files in this folder\n.*looked for .wav, .flac"),
        ("no audio", "no audio files in this folder; it holds 1 .txt"),
        ("all bad", f"none of {len(BAD)} audio files can be used; the first causes:\n(.|\n)*absurd_rate.wav: "),
    ],
)
def test_a_folder_of_no_use_ends_the_run(tmp_path, what, message):
    try:
        with pytest.raises(ConfigError, match=f"^{tmp_path}.*: {message}"):
            report(scan_folder(failing(tmp_path, what)))
    finally:
        tmp_path.chmod(0o700)


def test_a_subfolder_that_cannot_be_listed_is_named(tmp_path):
    write(tmp_path / "a.wav", signal(0.1, 8000), 8000)
    locked = tmp_path / "locked"
    locked.mkdir(0)
    try:
        if os.access(locked, os.R_OK):
            pytest.skip("this user may read everything")
        assert "cannot list the folder: Permission denied" in scan_folder(tmp_path).bad[0].cause
    finally:
        locked.chmod(0o700)


def test_long_scans_say_how_far_they_are(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("stable_audio_tools.data.scan.PROGRESS_S", 0.0)
    for number in range(3):
        write(tmp_path / f"{number}.wav", signal(0.1, 8000), 8000)
    with caplog.at_level(logging.INFO):
        scan_folder(tmp_path)
    assert "looking over 3 audio files" in caplog.text
    assert "2 of 3 files looked over" in caplog.text
