"""Demos lined up across steps: the same prompt stays in its row, whatever a step lacks or a file claims."""

import json
from pathlib import Path

import pytest

from stable_audio_tools.report.demos import group_rows, read_demos


def write(folder: Path, step: int, entries, files: tuple[str, ...] = ("a.wav", "a.png")) -> Path:
    path = folder / f"step_{step:08d}"
    path.mkdir(parents=True)
    for name in files:
        (path / name).write_bytes(b"x")
    (path / "demos.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return path


def read(folder: Path):
    notes: list[str] = []
    return read_demos(folder, notes), notes


def test_no_demos_yet(tmp_path):
    assert read(tmp_path / "demos") == ([], [])
    (tmp_path / "demos" / "step_00000100").mkdir(parents=True)
    (tmp_path / "demos" / "notes").mkdir()
    assert read(tmp_path / "demos") == ([], [])


def test_steps_come_in_numeric_order(tmp_path):
    for step in (200, 1000, 50):
        write(tmp_path, step, [{"title": "a", "audio": "a.wav", "image": "a.png"}])
    demos, notes = read(tmp_path)
    assert [demo.step for demo in demos] == [50, 200, 1000]
    assert demos[0].clips[0].audio == tmp_path / "step_00000050" / "a.wav"
    assert not notes


@pytest.mark.parametrize("text", ['[{"title": "a', "", "{}", "[1]", "null", "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")])
def test_an_unreadable_step_is_named_and_left_out(tmp_path, text):
    write(tmp_path, 1, [{"title": "a", "audio": "a.wav"}])
    write(tmp_path, 2, text)
    demos, notes = read(tmp_path)
    assert [demo.step for demo in demos] == [1]
    assert len(notes) == 1
    assert "demos/step_00000002/demos.json" in notes[0]


@pytest.mark.parametrize(
    "name", ["../secret.wav", "/etc/passwd", "sub/../../secret.wav", "link.wav", "none.wav", "", ".", None, 3, ["a.wav"], "a\0.wav"]
)
def test_a_file_name_leads_nowhere_but_into_the_folder(tmp_path, name):
    (tmp_path / "secret.wav").write_bytes(b"secret")
    path = write(tmp_path / "demos", 1, [{"title": "a", "audio": name, "image": name}])
    (path / "link.wav").symlink_to(tmp_path / "secret.wav")
    clip = read(tmp_path / "demos")[0][0].clips[0]
    assert clip.audio is None
    assert clip.image is None


def test_the_same_prompt_and_settings_share_a_row(tmp_path):
    for step, scales in ((0, (1.0, 2.5)), (100, (2.5, 1.0)), (200, (2.5,))):
        write(tmp_path, step, [{"title": f"p at {step}", "prompt": "p", "cfg_scale": s, "seed": 3} for s in scales])
    (group,) = group_rows(read(tmp_path)[0])
    assert group.title == "p"
    assert [row.first.settings for row in group.rows] == [(("CFG", "1"), ("seed", "3")), (("CFG", "2.5"), ("seed", "3"))]
    assert [[clip is not None for clip in row.clips] for row in group.rows] == [[True, True, False], [True, True, True]]


def test_originals_stand_first_in_their_group(tmp_path):
    entries = [
        {"title": "x, reconstruction", "kind": "reconstruction", "group": "x"},
        {"title": "y", "kind": "generated", "group": "y"},
        {"title": "x, original", "kind": "original", "group": "x"},
    ]
    write(tmp_path, 0, entries)
    groups = group_rows(read(tmp_path)[0])
    assert [(group.title, [row.first.kind for row in group.rows]) for group in groups] == [
        ("x", ["original", "reconstruction"]),
        ("y", ["generated"]),
    ]


def test_clips_that_look_alike_are_all_kept(tmp_path):
    for step in (0, 1):
        write(tmp_path, step, [{"title": "same"}, {"title": "same"}])
    (group,) = group_rows(read(tmp_path)[0])
    assert len(group.rows) == 2
    assert all(None not in row.clips for row in group.rows)


def test_facts_become_text(tmp_path):
    write(
        tmp_path,
        0,
        [{"title": "a", "info": {"snr_db": 12.34567, "ok": True, "name": "x", "nested": {"a": [1]}, "gone": None}, "seed": 10**400}],
    )
    clip = read(tmp_path)[0][0].clips[0]
    assert clip.info == (("snr_db", "12.35"), ("ok", "true"), ("name", "x"), ("nested", '{"a": [1]}'), ("gone", ""))
