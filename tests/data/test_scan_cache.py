"""What is kept of a scan: which files are looked at again, caches that cannot be used, and where they stand."""

import json
import logging
import multiprocessing
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from audio_files import make, signal, write

from stable_audio_tools.data import scan as scan_module
from stable_audio_tools.data.file_table import FileTable
from stable_audio_tools.data.scan import Limits, scan_folder
from stable_audio_tools.data.scan_cache import NAME


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for name in ("a", "b", "c"):
        write(tmp_path / "data" / "sub" / f"{name}.wav", signal(0.1, 8000, seed=ord(name)), 8000)
        (tmp_path / "data" / "sub" / f"{name}.txt").write_text(f"caption {name}")
    return tmp_path / "data"


@pytest.fixture
def looked(monkeypatch):
    """Names of the files that were looked at since the list was cleared."""
    names, look = [], scan_module.look

    def noted(path, *args, **kwargs):
        names.append(os.path.basename(path))
        return look(path, *args, **kwargs)

    monkeypatch.setattr(scan_module, "look", noted)
    return names


def contents(scan):
    return [(file.path, file.relpath, file.info, file.metadata) for file in scan.files], scan.bad, scan.caption_problems, scan.others


def test_a_second_scan_looks_at_nothing_and_finds_the_same(folder, looked):
    first = scan_folder(folder)
    assert len(looked) == 3 and (folder / NAME).is_file()
    looked.clear()
    assert contents(scan_folder(folder)) == contents(first) and looked == []
    assert contents(scan_folder(folder, keep=False)) == contents(first) and len(looked) == 3


def rewritten(path, seconds=0.2):
    write(path, signal(seconds, 8000), 8000)


def same_size_and_time(path):
    """Another file under the name, of the same size and the same time: the number on the disk tells."""
    status = path.stat()
    other = write(path.with_name("other.wav"), signal(0.1, 8000, seed=77), 8000)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)


CHANGES = {
    "content": lambda sub: rewritten(sub / "b.wav"),
    "time": lambda sub: os.utime(sub / "b.wav", ns=(1, 1)),
    "another file": lambda sub: same_size_and_time(sub / "b.wav"),
    "caption": lambda sub: (sub / "b.txt").write_text("another caption"),
    "caption gone": lambda sub: (sub / "b.txt").unlink(),
    "caption new": lambda sub: (sub / "b.json").write_text('{"prompt": "from json"}'),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_looked_at_again_and_nothing_else(folder, looked, what):
    scan_folder(folder)
    looked.clear()
    CHANGES[what](folder / "sub")
    kept = scan_folder(folder)
    assert looked == ["b.wav"]
    assert contents(kept) == contents(scan_folder(folder, keep=False))


def test_new_and_missing_files(folder, looked):
    scan_folder(folder)
    looked.clear()
    (folder / "sub" / "a.wav").unlink()
    write(folder / "d.wav", signal(0.1, 8000), 8000)
    assert [file.relpath for file in scan_folder(folder).files] == ["d.wav", "sub/b.wav", "sub/c.wav"]
    assert looked == ["d.wav"]


def test_what_is_asked_of_files_may_change(folder, looked):
    """Limits are held against what was found; only a level that asks for more than was read, or a whole reading, looks again."""
    quiet = np.zeros((200_000, 1), np.float32)
    quiet[150_000] = 0.003
    write(folder / "quiet.flac", quiet, 8000)
    assert "quiet.flac" in {file.relpath for file in scan_folder(folder, Limits(silence_db=None)).files}
    looked.clear()
    assert "quiet.flac" in {file.relpath for file in scan_folder(folder).files}  # -50 dB, found by reading all
    assert looked == ["quiet.flac"]
    looked.clear()
    assert {Path(fault.path).name for fault in scan_folder(folder, Limits(silence_db=-40.0)).bad} == {"quiet.flac"}
    assert [fault.cause[:9] for fault in scan_folder(folder, Limits(min_seconds=0.2)).bad] == ["too short"] * 3
    assert len(scan_folder(folder, Limits(channels=4)).bad) == 3 and looked == []
    assert len(scan_folder(folder, thorough=True).sounds) == 4 and len(looked) == 4
    looked.clear()
    assert len(scan_folder(folder, thorough=True).sounds) == 4 and looked == []


def test_what_could_not_be_read_is_tried_again(folder, looked):
    (folder / "cut.wav").write_bytes((folder / "sub" / "a.wav").read_bytes()[:200])
    (folder / "sub" / "b.json").write_text("{")
    first = scan_folder(folder)
    looked.clear()
    assert contents(scan_folder(folder)) == contents(first)
    assert sorted(looked) == ["b.wav", "cut.wav"]


def test_tags_are_a_setting_of_the_cache(folder, looked):
    scan_folder(folder)
    looked.clear()
    scan_folder(folder, tags=True)
    assert len(looked) == 3


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "empty": (lambda content: b"", "is damaged"),
    "cut": (lambda content: content[: len(content) // 2], "is damaged"),
    "a flipped bit": (flipped, "is damaged"),
    "something else": (lambda content: b"\x80\x04cos\nsystem\n" * 9, "is damaged"),
    "a list": (lambda content: b"[]\n[]", "is damaged"),
    "deep": (lambda content: b"[" * 99999, "is damaged"),
    "another version": (lambda content: re.sub(rb'"readers": "\w+"', b'"readers": "0"', content), "is from another version"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_cache_that_cannot_be_used_is_told_once_and_made_again(folder, looked, caplog, what):
    first = contents(scan_folder(folder))
    spoil, message = DAMAGE[what]
    (folder / NAME).write_bytes(spoil((folder / NAME).read_bytes()))
    looked.clear()
    with caplog.at_level(logging.INFO):
        assert contents(scan_folder(folder)) == first
    assert len(looked) == 3
    assert [message in record.getMessage() for record in caplog.records if NAME in record.getMessage()] == [True]
    looked.clear()
    assert contents(scan_folder(folder)) == first and looked == []


def test_a_copied_cache_says_nothing_of_other_files(folder, looked):
    scan_folder(folder)
    other = folder.parent / "copy"
    shutil.copytree(folder, other)
    looked.clear()
    assert len(scan_folder(other).files) == 3 and len(looked) == 3


def test_where_nothing_can_be_written_beside_the_data_it_is_kept_at_home(folder, looked, tmp_path):
    (folder / NAME).mkdir()  # a name that no file can take, for any user
    scan_folder(folder)
    (kept,) = (tmp_path / "home" / "stable-audio-tools" / "scans").iterdir()
    assert json.loads(kept.read_bytes().partition(b"\n")[0])["form"]["tags"] is False
    looked.clear()
    assert len(scan_folder(folder).files) == 3 and looked == []


def test_where_nothing_can_be_kept_the_scan_goes_on(folder, tmp_path, caplog):
    (folder / NAME).mkdir()
    (tmp_path / "home").write_text("no folder")
    with caplog.at_level(logging.INFO):
        assert len(scan_folder(folder).files) == 3
    assert "what was found is not kept: " in caplog.text


def test_an_interrupted_scan_keeps_what_it_found(folder, looked, monkeypatch):
    look = scan_module.look

    def interrupted(path, *args, **kwargs):
        if path.endswith("c.wav"):
            raise KeyboardInterrupt
        return look(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(scan_module, "look", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scan_folder(folder)
    looked.clear()
    scan_folder(folder)
    assert "c.wav" in looked and len(looked) < 3


def _scan_again_and_again(folder, results):
    for _ in range(10):
        (folder / NAME).unlink(missing_ok=True)
        results.put(len(scan_folder(folder).files))


@pytest.mark.slow
def test_two_processes_at_once(folder, caplog):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_scan_again_and_again, args=(folder, results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=120) for _ in range(20)] == [3] * 20
    for process in processes:
        process.join(60)
    with caplog.at_level(logging.INFO):
        scan_folder(folder)
    assert "damaged" not in caplog.text
    assert [path.name for path in folder.iterdir()].count(NAME) == 1 and len(list(folder.iterdir())) == 2


def test_a_file_table_is_the_list_it_was_made_of(tmp_path):
    scan = scan_folder(make(tmp_path / "é", "flac", 0.2).parent if (tmp_path / "é").mkdir() is None else tmp_path)
    table = scan.files
    assert isinstance(table, FileTable) and len(table) == 1 and [*table] == [table[0]] == table[0:1] == [table[-1]]
    assert table[0].info.container == "FLAC" and table[0].path == str(tmp_path / "é" / "x.flac")
    with pytest.raises(IndexError):
        table[1]
    assert [*FileTable.of("nowhere", [])] == []
