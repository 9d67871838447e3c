"""`check --data --preview`: items as the model gets them, on the screen and as files; and how far a long look is."""

import json
import sys

import pytest
from audio_files import signal, write
from configs import SAMPLE_RATE, text_to_audio

from stable_audio_tools.cli import scan_progress
from stable_audio_tools.cli.main import main


@pytest.fixture
def files(tmp_path):
    """A model config, and a dataset config with settings of its one dataset."""
    (tmp_path / "model.json").write_text(json.dumps(text_to_audio()))
    for number in range(4):
        write(tmp_path / "in" / f"{number}.wav", signal(0.1, SAMPLE_RATE, 1, number), SAMPLE_RATE)
        (tmp_path / "in" / f"{number}.txt").write_text(f"sound {number}")

    def paths(**item):
        document = {"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": str(tmp_path / "in"), **item}]}
        (tmp_path / "data.json").write_text(json.dumps(document))
        return [str(tmp_path / "model.json"), str(tmp_path / "data.json")]

    return paths


def test_the_text_that_the_model_reads_is_shown_and_clips_written(files, tmp_path, capsys):
    paths = files(prompts={"templates": ["{prompt}, on tape"]})
    assert main(["check", *paths, "--preview", "2", "--preview-to", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    shown = [line.strip() for line in out.splitlines() if "prompt reads" in line]
    assert len(shown) == 2 and all(line.startswith('prompt reads "sound ') and line.endswith(', on tape"') for line in shown)
    assert "2 items as the model gets them" in out and "audio files can be used" not in out
    assert len([*(tmp_path / "out").glob("*.wav")]) == 2
    written = [json.loads(path.read_text())["conditions"]["prompt"] for path in sorted((tmp_path / "out").glob("*.json"))]
    assert [f'prompt reads "{text}"' for text in written] == shown


def test_machines_get_the_preview_beside_the_figures(files, capsys):
    assert main(["check", *files(), "--data", "--preview", "9", "--json"]) == 0
    _, data = json.loads(capsys.readouterr().out)
    assert data["data"]["folders"][0]["files"] == 4 and data["data"]["duplicates"] == []
    assert {item["conditions"]["prompt"] for item in data["preview"]} == {f"sound {number}" for number in range(4)}
    assert all(item["metadata"]["seconds_total"] == 1 for item in data["preview"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["data.json", "--preview", "2"], "name the model config, too"),
        (["model.json", "data.json", "--preview-to", "out"], "--preview-to has no effect without --preview"),
        (["model.json", "data.json", "--preview", "0"], "expected a whole number of 1 or more"),
    ],
)
def test_what_cannot_be_previewed_is_refused(files, tmp_path, capsys, monkeypatch, arguments, message):
    files()
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["check", *arguments])
    except SystemExit as end:
        status = end.code
    assert status == 2 and message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_code_runs_for_a_preview_only_when_it_is_allowed(files, tmp_path, capsys):
    canary = tmp_path / "canary"
    (tmp_path / "meta.py").write_text(f"open({str(canary)!r}, 'w')\ndef get_custom_metadata(info, audio): return {{'prompt': 'from code'}}")
    paths = files(custom_metadata_module=str(tmp_path / "meta.py"))
    assert main(["check", *paths, "--preview", "1"]) == 2
    assert "--allow-code" in capsys.readouterr().err and not canary.exists()
    assert main(["check", *paths, "--preview", "1", "--allow-code"]) == 0
    assert 'prompt reads "from code"' in capsys.readouterr().out and canary.exists()


def told(terminal, monkeypatch, capsys, steps):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    now = iter(range(0, 10_000, 30))
    monkeypatch.setattr(scan_progress.time, "monotonic", lambda: next(now))
    progress = scan_progress.ScanProgress("data.json")
    for done, total in steps:
        progress(done, total)
    return capsys.readouterr().err


def test_a_terminal_has_a_bar_that_goes_and_others_have_lines(monkeypatch, capsys):
    lines = told(False, monkeypatch, capsys, [(1, 4), (2, 4), (4, 4), (1, 3), (2, 3)])
    assert lines.splitlines() == [
        "data.json: 1 of 4 files, about 1 min 30 s left",
        "data.json: 2 of 4 files, about 1 min 0 s left",
        "data.json: 2 of 3 files, about 15 s left",
    ]
    bar = told(True, monkeypatch, capsys, [(1, 4), (4, 4)])
    assert "data.json [######                  ] 1 of 4 files, about 1 min 30 s left" in bar
    assert bar.endswith("\r\x1b[K") and "\n" not in bar
