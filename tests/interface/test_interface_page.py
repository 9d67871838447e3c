"""The page in headless Chromium, served by the real command: type, click, listen, download, choose a part, err."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from report_browser import Browser

from stable_audio_tools.audio.io import load_audio
from stable_audio_tools.cli.main import main

pytest.importorskip("gradio")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Browser.available(), reason="no chromium on PATH")]

ROOT = Path(__file__).parents[2]
PATIENCE_S, START_S = 60, 180
CLIPS = "document.querySelectorAll('.sat-clip').length"
PROBLEM = "document.querySelector('#results .sat-problem')"


class Server:
    """`ui` in a process of its own, in an empty folder."""

    def __init__(self, folder: Path, runs: Path, *arguments: str, **environment: str):
        self.folder, self.out = folder, folder / "clips"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "here").mkdir(parents=True)
        command = [sys.executable, "-m", "stable_audio_tools", "ui", "--runs", str(runs), "--port", str(self.port), "--out", str(self.out)]
        home = {"HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.log = folder / "log.txt"
        self.process = subprocess.Popen(
            [*command, "--device", "cpu", *arguments],
            cwd=folder / "here",
            env={**os.environ, **home, **environment},
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )
        self.url = f"http://127.0.0.1:{self.port}/"

    def __enter__(self):
        deadline = time.monotonic() + START_S
        while not re.search(rf"^open http\S+:{self.port}/$", self.log.read_text(), re.MULTILINE):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(self.log.read_text())
            time.sleep(0.1)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        assert self.process.wait(30) == 143, self.log.read_text()

    def answer(self, path: str) -> int:
        """The status of a request from outside the page."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def server(tmp_path_factory, runs):
    with Server(tmp_path_factory.mktemp("served"), runs) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, server):
    page = browser.open(server.url, width=1360, height=900)
    page.send("Emulation.setFocusEmulationEnabled", {"enabled": True})
    page.wait("document.querySelector('.sat-field') !== null", PATIENCE_S)
    yield page
    page.send("Page.close")  # each tab holds connections, of which a browser has six for a server
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith((server.url, "data:", "blob:"))] == []


def click(page, selector):
    """With the mouse, in the middle of what a person would see there."""
    page.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
    page.click(*page.run(f"(() => {{ const box = document.querySelector({selector!r}).getBoundingClientRect();"
                         "return [box.x + box.width / 2, box.y + box.height / 2]; })()"))  # fmt: skip


def choose(page, dropdown, text):
    """Choose in one of Gradio's lists, and wait for the form."""
    click(page, f"#{dropdown} input")
    option = f"[...document.querySelectorAll('[role=option]')].find((option) => option.textContent.replace('✓', '').trim() === {text!r})"
    page.wait(f"{option} !== undefined", PATIENCE_S)
    page.run(f"{option}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")
    page.wait(f"document.querySelector('#{dropdown} input').value === {text!r}", PATIENCE_S)
    if dropdown == "model":
        page.wait(f"document.querySelector('.sat-form').dataset.model.includes({f'/{text.split()[0]}/'!r})", PATIENCE_S)


def put(page, name, text):
    """Type over what a field of the form has."""
    page.run(f"document.querySelector('#set-{name}').focus(); document.querySelector('#set-{name}').select()")
    page.send("Input.insertText", {"text": str(text)})


def send(page, name, path):
    """Choose a file of this machine."""
    root = page.send("DOM.getDocument")["root"]["nodeId"]
    node = page.send("DOM.querySelector", {"nodeId": root, "selector": f"#set-{name}"})["nodeId"]
    page.send("DOM.setFileInputFiles", {"files": [str(path)], "nodeId": node})


def make(page):
    """Click, and wait for clips; gives how many there are on the page."""
    before = page.run(CLIPS)
    page.run(f"{PROBLEM}.hidden = true")
    click(page, "#go")
    page.wait(f"{CLIPS} > {before} || !{PROBLEM}.hidden", PATIENCE_S)
    assert page.run(f"{PROBLEM}.hidden"), page.run(f"{PROBLEM}.textContent")
    return page.run(CLIPS) - before


def fail(page):
    """Click, and wait for what is wrong."""
    click(page, "#go")
    page.wait(f"!{PROBLEM}.hidden", PATIENCE_S)
    return page.run(f"{PROBLEM}.textContent")


def downloaded(page, folder, selector, suffix):
    page.send("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    click(page, selector)
    deadline = time.monotonic() + PATIENCE_S
    while not (found := [path for path in folder.glob(f"*{suffix}") if path.stat().st_size]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found[0]


def test_a_prompt_becomes_a_clip_that_is_heard_seen_and_downloaded(page, server, runs, tmp_path, monkeypatch):
    choose(page, "model", "text · model")
    prompt = 'a bell <b>playing</b> A4 & "loud" <img src=x onerror=alert(1)>'
    put(page, "conditions-prompt", prompt)
    put(page, "seed", 5)
    put(page, "steps", 3)
    assert make(page) == 1
    assert page.run("document.querySelector('.sat-prompt').textContent") == prompt
    assert "seed 5 · 0.26 s" in page.run("document.querySelector('.sat-clip').textContent")
    page.wait("document.querySelector('.sat-clip img').naturalWidth === 640", PATIENCE_S)
    page.run("document.querySelector('.sat-clip audio').play()")
    page.wait("document.querySelector('.sat-clip audio').currentTime > 0", PATIENCE_S)
    wav = downloaded(page, tmp_path, ".sat-wav", ".wav")
    monkeypatch.chdir(tmp_path)
    wanted = ["--model", str(runs / "text"), "--prompt", prompt, "--seed", "5", "--steps", "3", "--device", "cpu"]
    assert main(["generate", *wanted, "--out", "same.wav"]) == 0
    audio, rate = load_audio(wav)
    assert rate == 8000 and audio.shape == (1, 2048) and audio.isfinite().all() and audio.abs().max() > 0.01
    torch.testing.assert_close(audio, load_audio("same.wav")[0], rtol=0, atol=1e-4)
    flac = downloaded(page, tmp_path, ".sat-clip .sat-line button", ".flac")
    assert torch.equal(load_audio(flac)[0], audio)
    settings = page.run("(() => { document.querySelector('.sat-clip details').open = true;"
                        "return document.querySelector('.sat-clip table').innerText; })()")  # fmt: skip
    assert "steps\t3" in settings and "sampler\teuler" in settings


def test_enter_in_the_prompt_makes_a_clip_and_a_result_is_used_again(page):
    choose(page, "model", "text · model")
    put(page, "conditions-prompt", "a saw")
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
    page.send("Input.dispatchKeyEvent", {"type": "keyDown", **key})
    page.wait(f"{CLIPS} === 1", PATIENCE_S)
    seed = page.run("document.querySelector('.sat-clip .sat-grow').textContent").split()[1]
    page.run("[...document.querySelectorAll('.sat-clip button')].find((button) => button.textContent === 'this seed').click()")
    assert page.run("document.querySelector('#set-seed').value") == seed
    page.run("[...document.querySelectorAll('.sat-clip button')].find((button) => button.textContent === 'vary it').click()")
    assert make(page) == 1
    assert "init audio" in page.run("document.querySelector('.sat-clip table').textContent")


def test_a_part_is_chosen_on_the_waveform_and_made_anew(page, server, tone):
    choose(page, "model", "inpainting · model")
    send(page, "inpaint-audio", tone)
    start, end = (f"document.querySelector('#set-region-{which}').value" for which in ("start", "end"))
    page.wait(f"{start} === '0.2'", PATIENCE_S)  # where the sound ends
    page.run("document.querySelector('.sat-region svg').scrollIntoView({block: 'center'})")
    left, top, width, height = page.run("(() => { const box = document.querySelector('.sat-region svg').getBoundingClientRect();"
                                        "return [box.x, box.y, box.width, box.height]; })()")  # fmt: skip
    for kind, share in (("mousePressed", 0.25), ("mouseMoved", 0.4), ("mouseMoved", 0.5), ("mouseReleased", 0.5)):
        event = {"type": kind, "x": left + width * share, "y": top + height / 2, "button": "left", "buttons": 1, "clickCount": 1}
        page.send("Input.dispatchMouseEvent", event)
    assert float(page.run(start)) == pytest.approx(0.064, abs=0.002) and float(page.run(end)) == pytest.approx(0.128, abs=0.002)
    assert make(page) == 1
    (settings,) = (json.loads(path.read_text()) for path in server.out.glob("*/*.json") if "mask" in path.read_text())
    assert settings["mask"] == [f"{page.run(start)}:{page.run(end)}"] and settings["inpaint_audio"].endswith("tone.wav")
    page.wait("document.querySelector('.sat-clip audio').duration > 0.2", PATIENCE_S)


def test_two_models_stand_side_by_side_with_one_seed(page):
    choose(page, "model", "text · model")
    choose(page, "other", "inpainting · model")
    assert make(page) == 2
    assert page.run("document.querySelectorAll('.sat-columns > div').length") == 2
    assert len(set(page.run("[...document.querySelectorAll('.sat-clip > .sat-line > .sat-grow')].map((words) => words.textContent)"))) == 1
    page.run("document.querySelector('.sat-clip audio').currentTime = 0.1")
    click(page, ".sat-switch")
    page.wait("document.querySelectorAll('.sat-clip audio')[1].currentTime >= 0.1", PATIENCE_S)


def test_an_autoencoder_reconstructs_what_is_sent(page, tone):
    choose(page, "model", "autoencoder · model")
    assert fail(page) == "Sound to reconstruct: choose a file"
    send(page, "audio", tone)
    page.wait("!document.querySelector('.sat-sound audio').hidden", PATIENCE_S)
    assert make(page) == 1
    assert "0.20 s" in page.run("document.querySelector('.sat-clip').textContent")


def test_what_is_wrong_is_a_sentence_and_goes_when_it_is_mended(page, tmp_path):
    choose(page, "model", "conditioned · model")
    put(page, "conditions-tempo", 999)
    put(page, "steps", 0)
    said = fail(page)
    assert "Tempo: 999 is out of range: at least 60, at most 180" in said and "Steps: 0 is out of range" in said
    put(page, "conditions-tempo", 100)
    put(page, "steps", 2)
    assert make(page) == 1
    (tmp_path / "notes.wav").write_text("no audio")
    send(page, "init-audio", tmp_path / "notes.wav")
    page.wait("!document.querySelector('.sat-sound audio').hidden", PATIENCE_S)
    assert "notes.wav: not audio that can be read, or damaged" in fail(page)


def test_changing_the_model_keeps_what_both_ask_for(page):
    choose(page, "model", "conditioned · model")
    put(page, "conditions-prompt", "a saw, loud")
    put(page, "conditions-bars", 7)
    choose(page, "model", "language · model")
    assert page.run("document.querySelector('#set-conditions-prompt').value") == "a saw, loud"
    choose(page, "model", "conditioned · model")
    assert page.run("document.querySelector('#set-conditions-prompt').value") == "a saw, loud"
    assert make(page) == 1


def test_the_page_fits_a_phone(browser, server):
    page = browser.open(server.url, width=390, height=844, phone=True, dark=True)
    page.wait("document.querySelector('.sat-field') !== null", PATIENCE_S)
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.run("[...document.querySelectorAll('#form input, #form select, #form textarea')].every((node) =>"
                    "node.labels?.length || node.ariaLabel || node.ariaHidden === 'true')")  # fmt: skip
    page.send("Page.close")
    assert page.problems == []


def test_no_other_file_is_served_and_nothing_is_written_elsewhere(server, runs):
    config = runs / "text" / "exports" / "model.safetensors"
    for path in (config, Path("/etc/hostname"), server.log):
        assert server.answer(f"gradio_api/file={path}") in (403, 404)
    assert server.answer("gradio_api/file=../log.txt") in (403, 404)
    assert [*(server.folder / "here").iterdir()] == []
    assert not [path for path in (server.folder / "home").rglob("*") if path.is_file()]


def test_a_login_is_asked_for_and_an_open_page_is_warned_of(browser, runs, tmp_path):
    with Server(tmp_path / "closed", runs, STABLE_AUDIO_TOOLS_UI_AUTH="me:secret") as closed:
        assert closed.answer("config") == 401 and closed.answer("gradio_api/file=x") == 401
        page = browser.open(closed.url)
        page.wait("document.querySelector('input[type=password]') !== null", PATIENCE_S)
        assert not page.run("document.querySelector('#go')")
        assert "open to everyone" not in closed.log.read_text()
        assert "secret" not in closed.log.read_text()
    with Server(tmp_path / "open", runs, "--host", "0.0.0.0") as everywhere:
        assert "this page is open to everyone who can reach this machine, without a login" in everywhere.log.read_text()
    taken = socket.create_server(("127.0.0.1", 0))
    with taken:
        assert main(["ui", "--port", str(taken.getsockname()[1]), "--out", str(tmp_path / "taken"), "--runs", str(runs)]) == 2
