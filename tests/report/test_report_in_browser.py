"""The page in headless Chromium: it draws, plays and answers, without an error and without asking the network for anything."""

import json
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from report_browser import Browser, Page, opened
from report_samples import diffusion_clips, make_run, metrics_lines, run_state, write_demos, write_metrics

from stable_audio_tools.audio.latent_picture import save_latents
from stable_audio_tools.report import build, build_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Browser.available(), reason="no chromium on PATH")]

SCHEMES = [pytest.param((1280, False, False), id="desktop light"), pytest.param((390, True, True), id="phone dark")]
CURVE = "allCharts[{}].plot.querySelector('.curve').getAttribute('d')"


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    return build_report(make_run(tmp_path_factory.mktemp("runs") / "quick start", demo_steps=(0, 400, 1200, 2000), resumed=[800]))


def assert_quiet(page: Page, path: Path) -> None:
    """Nothing went wrong, and nothing was asked for but the page, what is inside it and what lies in its folder."""
    assert page.problems == []
    folder = path.resolve().parent.as_uri()
    assert [url for url in page.requests if not url.startswith(("blob:", "data:", folder))] == []


@pytest.mark.parametrize("form", SCHEMES)
def test_a_complete_page(browser, complete, form):
    width, phone, dark = form
    page = opened(browser, complete, width=width, phone=phone, dark=dark)
    page.wait("rows.length && rows[0].ready && rows[0].image.naturalWidth === 640")
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("allCharts.length") == 4
    page.wait("allCharts[0].drawn")
    assert page.run(CURVE.format(0)).count("L") > 150
    assert page.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert page.run("rows.length") == 3
    assert_quiet(page, complete)
    assert {url.split(":")[0] for url in page.requests} == {"file", "blob"}
    assert len([url for url in page.requests if url.startswith("file:")]) == 1


def test_latents_are_shown_below_the_spectrogram_where_there_are_some(browser, tmp_path):
    folder = make_run(tmp_path / "run", demo_steps=(0, 10))
    entries = folder / "demos" / "step_00000010" / "demos.json"
    demos = json.loads(entries.read_text())
    save_latents(torch.randn(8, 20), entries.with_name("latents.png"))
    demos[0]["latents"] = "latents.png"
    entries.write_text(json.dumps(demos))
    path = build_report(folder)
    page = opened(browser, path)
    page.wait("rows.length && rows[0].ready && rows[0].latents.naturalWidth === 640")
    assert page.run("rows[0].latents.alt").startswith("Latents of")
    page.run("choose(0)")
    page.wait("rows[0].latents.hidden")
    assert_quiet(page, path)


@pytest.mark.parametrize("form", SCHEMES)
def test_text_has_contrast_and_controls_have_names(browser, complete, form):
    width, phone, dark = form
    page = opened(browser, complete, width=width, phone=phone, dark=dark)
    page.run(
        "rows.forEach((row) => row.wake()); document.querySelectorAll('details').forEach((d) => { d.open = true; }); rows[0].button.click()"
    )
    assert page.faint() == []
    nameless = page.run("""[...document.querySelectorAll('button, input, a')].filter((node) =>
      !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length)).map((node) => node.outerHTML)""")
    assert nameless == []


def test_one_sound_at_a_time(browser, complete):
    page = opened(browser, complete)
    page.wait("rows[0].ready")
    assert page.run("document.querySelectorAll('audio').length") == 1
    page.run("$('loop').click()")
    for row in range(3):
        page.run(f"rows[{row}].wake(); rows[{row}].button.click()")
        page.wait("!audio.paused && audio.currentTime > 0.05")
        assert page.run("audio.duration") == pytest.approx(0.3, abs=0.01)
        assert page.run("rows.map((row) => row.node.classList.contains('active'))") == [i == row for i in range(3)]
        assert page.run(f"rows[{row}].button.getAttribute('aria-label')").startswith("Pause")
    page.run("$('loop').click()")
    page.wait("audio.ended && rows[2].button.getAttribute('aria-label').startsWith('Play')")
    assert_quiet(page, complete)


def test_the_slider_chooses_the_step_of_every_row(browser, complete):
    page = opened(browser, complete)
    page.run("rows.forEach((row) => row.wake())")
    before = page.run("rows.map((row) => row.image.src)")
    assert page.run("$('step-name').textContent") == "step 2,000 · 4/4"
    page.run("$('step').value = 1; $('step').dispatchEvent(new Event('input'))")
    assert page.run("$('step-name').textContent") == "step 400 · 2/4"
    after = page.run("rows.map((row) => row.image.src)")
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert page.run("rows.map((row) => row.strip.querySelector('[aria-pressed=true]').textContent)") == ["400"] * 3
    assert page.run("rows[0].label.textContent") == "Generated, step 400"
    page.run("$('earlier').click()")
    assert page.run("[$('earlier').disabled, $('later').disabled]") == [True, False]


def test_a_thumbnail_plays_its_step(browser, complete):
    page = opened(browser, complete)
    page.wait("rows[0].ready")
    page.run("$('loop').click(); rows[0].strip.querySelectorAll('button')[2].click()")
    page.wait("!audio.paused && selected === 2")
    assert page.run("audio.src === address(rows[0].spec.clips[2].sound)")


def test_keys_compare_steps_and_the_original_at_one_position(browser, complete):
    page = opened(browser, complete)
    page.run("rows.forEach((row) => row.wake()); $('loop').click(); rows[2].button.focus(); rows[2].button.click()")
    page.wait("audio.currentTime > 0.1")
    page.run("audio.pause(); audio.currentTime = 0.2")
    page.press("ArrowLeft")
    page.wait("selected === 2 && audio.readyState > 1 && Math.abs(audio.currentTime - 0.2) < 0.02")
    assert page.run("audio.paused")
    page.press("o")
    page.wait("rows[2].label.textContent === 'Original' && audio.readyState > 1 && Math.abs(audio.currentTime - 0.2) < 0.02")
    assert page.run("audio.src === address(rows[2].original.clips[2].sound)")
    page.press("o")
    page.wait("rows[2].label.textContent === 'Reconstruction, step 1,200'")
    page.press("k")
    page.wait("active === rows[1] && !audio.paused")
    page.run("document.activeElement.blur()")
    page.press(" ")
    page.wait("audio.paused")
    assert_quiet(page, complete)


def test_keys_leave_typing_alone(browser, complete):
    page = opened(browser, complete)
    page.run("$('search').focus()")
    page.press("o")
    page.press("a")
    assert page.run("[$('search').value, audio.paused, selected]") == ["oa", True, 3]


def test_all_steps_in_turn(browser, complete):
    page = opened(browser, complete)
    page.wait("rows[0].ready")
    page.run("window.heard = []; audio.addEventListener('play', () => heard.push(selected)); rows[0].tour.click()")
    page.wait("audio.ended && !touring && selected === 3")
    assert page.run("[...new Set(heard)]") == [0, 1, 2, 3]


def test_clicking_the_spectrogram_seeks(browser, complete):
    page = opened(browser, complete)
    page.wait("rows[0].ready && rows[0].image.naturalWidth")
    page.run("rows[0].node.scrollIntoView({ block: 'center' })")
    left, top, width = page.run(
        "(() => { const box = rows[0].spectrogram.getBoundingClientRect(); return [box.left, box.top, box.width]; })()"
    )
    plot = page.run("rows[0].clip.picture.plot")
    page.run("window.first = null; audio.addEventListener('seeked', () => { first ??= audio.currentTime; })")
    page.click(left + width * (plot[0] + 0.5 * (plot[2] - plot[0])), top + 40)
    page.wait("first !== null")
    assert 0.14 <= page.run("first") < 0.3  # it plays on until a busy machine is told of the end of the seek
    head = page.run("parseFloat(rows[0].head.style.left)")
    assert 100 * (plot[0] + 0.45 * (plot[2] - plot[0])) <= head <= 100 * plot[2] + 0.01


def test_curves_answer_to_pointer_keys_smoothing_and_log(browser, complete):
    page = opened(browser, complete)
    page.wait("allCharts[0].drawn")
    left, top, width = page.run(
        "(() => { const box = allCharts[0].plot.getBoundingClientRect(); return [box.left, box.top, box.width]; })()"
    )
    page.move(left + width / 2, top + 100)
    page.wait("!allCharts[0].tip.hidden")
    tip = page.run("allCharts[0].tip.textContent")
    assert tip.startswith("step ")
    assert "train/loss 0." in tip
    assert "smoothed" in tip
    box = page.run("(() => { const box = allCharts[0].tip.getBoundingClientRect(); return [box.left, box.right, box.top]; })()")
    assert box[0] > left
    assert box[1] < left + width
    assert top - 40 < box[2] < top + 60
    page.run("allCharts[0].plot.focus()")
    page.press("ArrowRight")
    assert page.run("allCharts[0].tip.textContent") != tip
    page.run("allCharts[0].plot.blur()")
    assert page.run("allCharts[0].tip.hidden")

    drawn = [page.run(CURVE.format(0))]
    page.run("$('smoothing').value = 0; $('smoothing').dispatchEvent(new Event('input'))")
    drawn.append(page.run(CURVE.format(0)))
    page.run("allCharts[0].log.click()")
    drawn.append(page.run(CURVE.format(0)))
    assert len(set(drawn)) == 3
    assert page.run("allCharts[0].plot.querySelectorAll('.resumed').length") == 1
    assert "train/loss from" in page.run("allCharts[0].plot.getAttribute('aria-label')")
    assert_quiet(page, complete)


def test_gaps_and_marks_where_there_is_no_number(browser, tmp_path):
    lines = metrics_lines(5000)
    for row in range(2001, 3001):
        cells = lines[row].split(",")
        cells[2] = "nan"
        lines[row] = ",".join(cells)
    write_metrics(tmp_path, lines)
    page = opened(browser, build_report(tmp_path))
    page.wait("allCharts[0].drawn")
    path = page.run(CURVE.format(0))
    assert path.count("M") == 2
    assert path.count("L") > 300
    assert page.run("allCharts[0].plot.querySelectorAll('.bad').length") > 10
    assert "first at step 2,001" in page.run("allCharts[0].legend.textContent")
    page.run("allCharts[0].point(2500)")
    assert "not a number" in page.run("allCharts[0].tip.textContent")
    page.run("allCharts.forEach((chart) => chart.log.click())")
    assert "NaN" not in page.run("allCharts.map((chart) => chart.plot.outerHTML).join()")
    assert_quiet(page, tmp_path / "index.html")


@pytest.mark.parametrize("cell", ["nan", "0", "-5", "1e-30", "3"])
def test_a_single_point_and_odd_values_are_drawn(browser, tmp_path, cell):
    write_metrics(tmp_path, ["step,time_s,train/loss", f"0,0.1,{cell}"])
    page = opened(browser, build_report(tmp_path))
    page.wait("allCharts[0].drawn")
    page.run("allCharts[0].log.click(); allCharts[0].point(0)")
    assert "NaN" not in page.run("allCharts[0].plot.outerHTML")
    assert "Infinity" not in page.run("allCharts[0].plot.outerHTML")
    assert_quiet(page, tmp_path / "index.html")


def test_long_sounds_play_as_flac_and_mp3(browser, tmp_path):
    noise = 0.1 * torch.randn(2, 44100 * 6, generator=torch.Generator().manual_seed(0))
    clips = [{"title": name, "samples": noise[:, : 44100 * s], "rate": 44100} for name, s in (("short", 2), ("long", 6))]
    write_demos(tmp_path, 100, clips)
    page = opened(browser, build_report(tmp_path))
    assert page.run("[...document.querySelectorAll('[data-mime^=audio]')].map((m) => m.dataset.mime).sort()") == [
        "audio/flac",
        "audio/mpeg",
    ]
    assert "MP3" in page.run("$('embedding').textContent")
    for row, seconds in ((0, 2), (1, 6)):
        page.run(f"rows[{row}].wake(); rows[{row}].button.click()")
        page.wait("audio.currentTime > 0.05")
        assert page.run("audio.duration") == pytest.approx(seconds, abs=0.1)
    assert_quiet(page, tmp_path / "index.html")


def test_linked_steps_play_from_the_folder_and_say_so_when_it_is_gone(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "EMBED_BUDGET", 0)
    path = build_report(make_run(tmp_path / "run", demo_steps=(0, 10), rows=5))
    page = opened(browser, path)
    page.wait("rows[0].ready && rows[0].image.naturalWidth")
    assert page.run("$('embedding').textContent").startswith("0 of 2 steps are inside this page")
    assert page.run("rows[0].strip.querySelectorAll('.linked').length") == 2
    page.run("rows[0].button.click()")
    page.wait("audio.currentTime > 0.05")
    assert_quiet(page, path)

    moved = tmp_path / "alone.html"
    shutil.copy(path, moved)
    page = opened(browser, moved)
    page.wait("rows[0].ready")
    page.run("rows[0].button.click()")
    page.wait("rows[0].trouble.textContent.includes('open the page in its run folder')")
    page.wait("rows[0].missing.textContent.includes('not beside this page')")


def test_hostile_text_does_nothing(browser, tmp_path):
    attack = (
        "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><svg onload=document.title='owned'>"
    )
    (tmp_path / "config.json").write_text(json.dumps({attack: attack}))
    (tmp_path / "evaluation.json").write_text(json.dumps({attack: {attack: 1}}))
    (tmp_path / "run.json").write_text(json.dumps(run_state(1, name=attack[:60], error=attack, updated=attack)))
    write_metrics(tmp_path, [f'step,time_s,"{attack.replace(chr(34), "")}"', "1,1,1", "2,2,2"])
    clip = diffusion_clips(1, 1, prompts=1, scales=(1.0,), seconds=0.1)[0]
    write_demos(tmp_path, 1, [clip | dict.fromkeys(("title", "prompt", "group", "kind", "seed"), attack) | {"info": {attack: attack}}])
    page = opened(browser, build_report(tmp_path))
    page.wait("allCharts[0].drawn")
    page.run("rows.forEach((row) => row.wake()); allCharts[0].point(1)")
    page.run("$('search').value = 'script'; $('search').dispatchEvent(new Event('input'))")
    assert "owned" in page.run("allCharts[0].tip.textContent")
    time.sleep(0.1)
    assert "owned'" not in page.run("document.title.replace(/<.*/s, '')")
    assert page.run("document.title") != "owned"
    assert page.run("document.querySelector('#groups h3').textContent") == attack
    assert page.run("document.querySelectorAll('[onerror], [onload]').length") == 0
    assert page.run("document.querySelectorAll('script').length") == 4
    assert page.run("document.documentElement.scrollWidth") <= 1280
    assert_quiet(page, tmp_path / "index.html")


def test_the_policy_stops_foreign_scripts_and_connections(browser, complete):
    page = opened(browser, complete)
    page.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.owned = 1\"><img src=\"http://127.0.0.1:9/x.png\">')"
    )
    page.run("{ const s = document.createElement('script'); s.textContent = 'window.owned = 2'; document.body.append(s); }")
    assert page.run("fetch('http://127.0.0.1:9/').then(() => 'reached', () => 'refused')") == "refused"
    assert page.run("window.owned ?? null") is None
    assert any("Content Security Policy" in problem for problem in page.problems)


def test_searching_the_setup(browser, complete):
    page = opened(browser, complete)
    page.run("$('search').value = 'embed_DIM'; $('search').dispatchEvent(new Event('input'))")
    shown = page.run("[...document.querySelectorAll('pre span')].filter((s) => !s.hidden).map((s) => s.textContent.trim())")
    assert shown == ["{", '"model": {', '"diffusion": {', '"config": {', '"embed_dim": 160,']
    assert page.run("$('found').textContent") == "1 line"
    assert page.run("[...document.querySelectorAll('details')].map((d) => d.open)") == [True, False, False, False]
    page.run("$('search').value = ''; $('search').dispatchEvent(new Event('input'))")
    assert page.run("[...document.querySelectorAll('pre span')].some((s) => s.hidden)") is False


def test_an_empty_and_a_failed_run(browser, tmp_path):
    page = opened(browser, build_report(tmp_path), width=390, phone=True)
    assert page.run("[...document.querySelectorAll('main > section')].filter((s) => !s.hidden).map((s) => s.id)") == ["setup"]
    assert_quiet(page, tmp_path / "index.html")
    (tmp_path / "run.json").write_text(json.dumps(run_state(3, status="failed", error="ValueError: " + "x" * 400)))
    page = opened(browser, build_report(tmp_path), width=390, phone=True)
    assert page.run("document.querySelector('[role=alert]').textContent").startswith("What went wrong: ValueError")
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert_quiet(page, tmp_path / "index.html")


@pytest.mark.parametrize(
    ("minutes", "text"), [(1, "running"), (30, "running, but not heard of for 30 min"), (300, "running, but not heard of for 5 h")]
)
def test_a_run_that_went_silent_is_told_from_one_that_runs(browser, tmp_path, minutes, text):
    updated = (datetime.now(UTC) - timedelta(minutes=minutes, seconds=5)).isoformat(timespec="seconds")
    (tmp_path / "run.json").write_text(json.dumps(run_state(3, status="running", updated=updated)))
    page = opened(browser, build_report(tmp_path))
    assert page.run("document.querySelector('.status').textContent") == text
    assert page.run("document.querySelector('.reload').hidden") is False
