"""The page as text: complete, in progress, broken and hostile run folders all give one whole page that asks nobody for anything."""

import json
import re
import shutil
from pathlib import Path

import pytest
from report_samples import (
    DATASET,
    EVALUATION,
    MODEL,
    OPTIONS,
    autoencoder_clips,
    make_run,
    metrics_lines,
    run_state,
    write_demos,
    write_metrics,
)
from report_text import HOSTILE, Page

from stable_audio_tools.report import build, build_report
from stable_audio_tools.report.document import duration, script_json


def built(run: Path) -> Page:
    path = build_report(run)
    assert path == run / "index.html"
    return Page(path)


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "quick start", resumed=[400])


def test_a_complete_run(complete):
    page = built(complete)
    for text in (
        "quick start",
        "finished",
        "2,000 of 2,000 (100%)",
        "4 min 06 s",
        "2.46 M",
        "Resumed at",
        "2026-05-02 09:12 UTC",
        "2.11.0",
    ):
        assert text in page.text
    for value in (MODEL, DATASET, OPTIONS):
        assert json.dumps(value, indent=2) in page.text
    for text in ("real sounds", "97.9% (90 to 100)", "loudness error db"):
        assert text in page.text
    assert [chart["title"] for chart in page.data["charts"]] == ["loss", "mse", "lr", "grad_norm"]
    assert page.data["demos"]["steps"] == [0, 400, 2000]
    assert page.data["resumed"] == [400]
    assert page.data["last_step"] == 2000
    assert not re.search(r"<li>", page.source.split('id="notes"')[1].split("</ul>")[0])


def test_the_page_is_self_contained(complete):
    page = built(complete)
    assert page.data["demos"]["embedded"] == [True, True, True]
    ids = {attributes.get("id") for tag, attributes in page.tags}
    clips = [clip for group in page.data["demos"]["groups"] for row in group["rows"] for clip in row["clips"]]
    assert clips
    assert all(f"media-{source['media']}" in ids for clip in clips for source in (clip["sound"], clip["picture"]))
    addresses = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert addresses == ["data:,"]
    assert not re.search(r"https?://(?!www\.w3\.org/)", page.source)


def test_the_policy_names_the_script_and_style_of_the_page(complete):
    import base64
    import hashlib

    source = build_report(complete).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', source)[1]
    for tag in ("script", "style"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", source, re.DOTALL)[1]
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_an_empty_folder(tmp_path):
    page = built(tmp_path)
    assert "unknown" in page.text
    assert page.data["charts"] == []
    assert page.data["demos"] == {"steps": [], "embedded": [], "groups": []}


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder at"):
        build_report(tmp_path / "nowhere")


def test_a_run_in_progress_is_rebuilt_as_it_grows(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps(run_state(0, status="running", wall_s=0.4)))
    assert "0 of 2,000 (0%)" in built(run).text
    write_metrics(run, metrics_lines(20))
    write_demos(run, 0, autoencoder_clips(0, 1, seconds=0.1)[:2])
    (run / "run.json").write_text(json.dumps(run_state(20, status="running")))
    page = built(run)
    assert "20 of 2,000 (1%)" in page.text
    assert "Left" in page.text
    assert "3 min 58 s" in page.text  # 1980 steps at 0.12 s
    assert page.data["status"] == "running"
    write_demos(run, 100, autoencoder_clips(1, 1, seconds=0.1)[:2])
    assert built(run).data["demos"]["steps"] == [0, 100]


def test_a_failed_run_says_why(tmp_path):
    run = make_run(tmp_path / "run", demo_steps=(0, 10), status="failed", error="OutOfMemoryError: tried <b>64 GiB</b>")
    page = built(run)
    assert "OutOfMemoryError: tried <b>64 GiB</b>" in page.text
    assert page.count("b") == 0


def test_hostile_text_stays_text(tmp_path):
    run = tmp_path / f"run {HOSTILE[:8].replace('/', '')}"
    run.mkdir()
    state = run_state(
        10, **{"name": HOSTILE, "error": HOSTILE, "device": HOSTILE, "started": HOSTILE, "updated": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    )
    (tmp_path / "run.json").write_text(json.dumps(state))
    for name in ("config.json", "dataset.json", "args.json", "evaluation.json"):
        (run / name).write_text(json.dumps({HOSTILE: HOSTILE, "nested": {HOSTILE: {HOSTILE: [HOSTILE]}}}))
    clip = autoencoder_clips(0, 1, seconds=0.05)[0]
    hostile = {"title": HOSTILE, "prompt": HOSTILE, "group": HOSTILE, "kind": HOSTILE, "seed": HOSTILE, "info": {HOSTILE: HOSTILE}}
    folder = write_demos(run, 0, [clip | hostile])
    name = "<img src=x onerror=alert(3)>\"' %2e#?.wav"
    (folder / "00.wav").rename(folder / name)
    entries = json.loads((folder / "demos.json").read_text())
    (folder / "demos.json").write_text(json.dumps([entries[0] | {"audio": name}]))
    write_metrics(run, [f'step,time_s,"{HOSTILE[:40].replace(chr(34), "")}"', "1,1,0.5"])

    page = built(run)
    assert page.count("img") == 0
    assert page.count("script") == 1 + 1 + 2  # data, script, a sound and a picture
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    row = page.data["demos"]["groups"][0]["rows"][0]
    assert (page.data["demos"]["groups"][0]["title"], row["title"], row["kind"]) == (HOSTILE, HOSTILE, HOSTILE)
    assert re.fullmatch(r"demos/step_00000000/[\w%.-]+", row["clips"][0]["file"])
    assert HOSTILE in page.text


def test_lone_surrogates_do_not_stop_the_page(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "\\ud800"}')
    assert '"name": "?"' in built(tmp_path).text


@pytest.mark.parametrize("name", ["run.json", "config.json", "dataset.json", "args.json", "evaluation.json", "metrics.csv"])
@pytest.mark.parametrize(
    "content", [b"", b'{"name": "qu', b"[1, 2", b"\xff\xfe\x00", b"[]", b"null", b"3", b'{"a": NaN, "b": 1e999}'], ids=repr
)
def test_any_file_may_be_half_written_or_something_else(complete, tmp_path, name, content):
    run = tmp_path / "run"
    shutil.copytree(complete, run, ignore=shutil.ignore_patterns("demos", "index.html"))
    (run / name).write_bytes(content)
    page = built(run)
    assert page.data["demos"]["steps"] == []


def test_wrong_types_in_run_json(tmp_path):
    state = {key: {"x": [float("inf")]} for key in run_state(1)} | {
        "step": True,
        "max_steps": 10**400,
        "parameters": "many",
        "resumed": "often",
    }
    (tmp_path / "run.json").write_text(json.dumps(state))
    assert "unknown" in built(tmp_path).text
    (tmp_path / "run.json").write_text(json.dumps(run_state(5, max_steps=None, status="stopped")))
    assert "stopped" in built(tmp_path).text


def test_an_unreadable_file_is_named_on_the_page(tmp_path):
    (tmp_path / "config.json").write_text('{"a')
    assert "config.json could not be read" in built(tmp_path).text


@pytest.mark.slow
def test_over_the_budget_older_steps_are_linked(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", demo_steps=(0, 100, 200, 300, 400), rows=5)
    monkeypatch.setattr(build, "EMBED_BUDGET", 90_000)
    page = built(run)
    embedded = page.data["demos"]["embedded"]
    assert embedded[0]
    assert embedded[-1]
    assert not all(embedded)
    clip = page.data["demos"]["groups"][0]["rows"][0]["clips"][embedded.index(False)]
    assert (run / clip["sound"]["url"]).is_file()
    assert (run / clip["picture"]["url"]).is_file()
    assert clip["picture"]["plot"] != (0.0, 0.0, 1.0, 1.0)


def test_a_running_page_is_kept_smaller(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", demo_steps=(0, 100, 200), rows=5, status="running")
    monkeypatch.setattr(build, "RUNNING_BUDGET", 0)
    assert built(run).data["demos"]["embedded"] == [False, False, False]


def test_the_old_page_stays_when_the_new_one_cannot_be_made(tmp_path, monkeypatch):
    build_report(tmp_path).write_text("old page")
    monkeypatch.setattr(build.render, "page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_report(tmp_path)
    assert (tmp_path / "index.html").read_text() == "old page"
    monkeypatch.undo()
    build_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_a_missing_sound_keeps_its_row(tmp_path):
    run = make_run(tmp_path / "run", demo_steps=(0,), rows=5)
    for path in (run / "demos" / "step_00000000").glob("00.*"):
        path.unlink()
    clip = built(run).data["demos"]["groups"][0]["rows"][0]["clips"][0]
    assert clip["sound"] == {}
    assert clip["file"] is None


def test_evaluation_of_any_nesting(tmp_path):
    (tmp_path / "evaluation.json").write_text(
        json.dumps(EVALUATION | {"deep": {"er": {"row": {"cell": 7}}, "and": 1}, "list": [1, 2.5, {"a": 1}]})
    )
    page = built(tmp_path)
    for text in ("deep · er", "row", "cell", "7", '1, 2.5, {"a": 1}', "–"):
        assert text in page.text
    assert page.count("table") == 2


def test_the_resume_command_is_the_one_the_run_wrote_down(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"name": "x", "resume": "stable-audio-tools train --name 'x; rm <b>' --recover"}))
    page = build_report(tmp_path).read_text()
    assert "train --name &#x27;x; rm &lt;b&gt;&#x27; --recover" in page


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (9.53, "9.53 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (200000, "2 d 7 h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_script_json_round_trips_and_cannot_leave_its_element():
    text = script_json({"a": HOSTILE})
    assert json.loads(text) == {"a": HOSTILE}
    assert not set("<>&\u2028") & set(text)
