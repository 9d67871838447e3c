"""A/B, blind test and comparison of runs in headless Chromium: what is heard, at which place, how loud, and what is said about it."""

import json
from pathlib import Path

import pytest
from report_browser import Browser, Page, opened
from report_samples import autoencoder_clips, diffusion_clips, make_run, metrics_lines, run_state, write_demos, write_metrics

from stable_audio_tools.report import build, build_comparison, build_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Browser.available(), reason="no chromium on PATH")]

SOUNDING = "players.map((player) => !player.paused && !player.muted)"


@pytest.fixture(scope="module")
def run_page(tmp_path_factory) -> Path:
    """Three steps of a prompt, each 6 dB above the one before, and of an autoencoder."""
    run = tmp_path_factory.mktemp("runs") / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps(run_state(300)))
    for index, step in enumerate((0, 100, 300)):
        clip = diffusion_clips(1, 1, prompts=2, scales=(1.0,), seconds=2.0)[1]
        clip["samples"] = clip["samples"] * 0.25 * 2**index
        write_demos(run, step, [clip, *autoencoder_clips(step, 300, seconds=1.0)[:2]])
    return build_report(run)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        make_run(folder / "a", demo_steps=(0, 400, 2000), name="narrow"),
        make_run(folder / "b", demo_steps=(0, 500, 1000), name="wide"),
    ]
    evaluations = [
        {"step": step, "metrics": [{"name": "fd", "value": 1, "low": 0.5, "high": 2, "better": "lower", "recipe": {"mels": 64}}]}
        for step in (100, 200)
    ]
    for run in runs:
        (run / "evaluations.jsonl").write_text("".join(json.dumps(each) + "\n" for each in evaluations))
    return build_comparison(runs, folder / "comparison.html")


def pair_opened(browser: Browser, page: Path, row: int, **options) -> Page:
    """The A/B of a row."""
    tab = opened(browser, page, **options)
    tab.run(f"rows.forEach((row) => row.wake()); rows[{row}].versus.click()")
    tab.wait("$('ab').open && players.every((player) => player.readyState > 1)")
    return tab


def quiet(page: Page, path: Path) -> bool:
    folder = path.resolve().parent.as_uri()
    return page.problems == [] and all(url.startswith(("blob:", "data:", folder)) for url in page.requests)


def chosen(page: Page) -> list[str]:
    return page.run("sides.map((side) => side.choice.selectedOptions[0].textContent)")


def test_a_key_switches_between_two_steps_at_the_same_place(browser, run_page):
    page = pair_opened(browser, run_page, 0)
    assert chosen(page) == ["step 100", "step 300"]
    page.run("$('ab-play').focus(); $('loop').checked = true")
    page.press(" ")
    page.wait("players[0].currentTime > 0.2")
    assert page.run(SOUNDING) == [True, False]
    page.press("x")
    assert page.run(SOUNDING) == [False, True]
    assert abs(page.run("players[1].currentTime - players[0].currentTime")) < 0.1
    assert page.run("players[1].currentTime") > 0.2
    page.press("a")
    assert page.run(SOUNDING) == [True, False]
    page.press(" ")
    page.wait("players.every((player) => player.paused)")
    page.run("$('ab-close').click()")
    assert page.run("$('ab').open") is False
    assert quiet(page, run_page)


def test_x_opens_it_for_the_sound_that_was_heard_last_and_escape_ends_it(browser, run_page):
    page = opened(browser, run_page)
    page.run("rows.forEach((row) => row.wake()); $('loop').click(); rows[1].button.focus(); rows[1].button.click()")
    page.wait("!audio.paused")
    page.press("x")
    page.wait("$('ab').open && audio.paused")
    assert chosen(page) == ["original", "step 300"]
    page.run("startBoth(0)")
    page.run("$('ab').requestClose ? $('ab').requestClose() : $('ab').close()")
    page.wait("players.every((player) => player.paused)")


def test_the_louder_one_is_turned_down_and_it_is_said_by_how_much(browser, run_page):
    page = pair_opened(browser, run_page, 0)
    assert page.run("$('ab-level').textContent") == "(B is turned down by 6.0 dB)"
    assert page.run("players.map((player) => player.volume)") == pytest.approx([1, 0.5], abs=0.01)
    page.run("$('ab-match').click()")
    assert page.run("players.map((player) => player.volume)") == [1, 1]
    assert page.run("$('ab-level').textContent") == "(B is louder by 6.0 dB)"
    page.run("$('ab-match').click(); sides[0].choice.value = 2; sides[1].choice.value = 0; takeSound(0); takeSound(1)")
    assert page.run("players.map((player) => player.volume)") == pytest.approx([0.25, 1], abs=0.01)


def test_a_click_on_a_spectrogram_plays_that_one_from_there(browser, run_page):
    page = pair_opened(browser, run_page, 0)
    page.wait("sides[1].image.naturalWidth")
    left, top, width = page.run(
        "(() => { const box = sides[1].picture.getBoundingClientRect(); return [box.left, box.top, box.width]; })()"
    )
    plot = page.run("chosenSound(1).clip.picture.plot")
    page.click(left + width * (plot[0] + 0.5 * (plot[2] - plot[0])), top + 40)
    page.wait("!players[1].paused")
    assert page.run(SOUNDING) == [False, True]
    assert 0.95 < page.run("players[1].currentTime") < 1.6


def test_sounds_beside_the_page_are_compared_at_the_loudness_that_training_wrote_down(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "EMBED_BUDGET", 0)
    path = build_report(make_run(tmp_path / "run", demo_steps=(0, 10), rows=5))
    assert pair_opened(browser, path, 0).run("$('ab-level').textContent") == "(the loudness of one is not known)"
    for step, loudness in ((0, -20.0), (10, -26.0)):
        entries = tmp_path / "run" / "demos" / f"step_{step:08d}" / "demos.json"
        entries.write_text(json.dumps([entry | {"loudness_lufs": loudness} for entry in json.loads(entries.read_text())]))
    page = pair_opened(browser, build_report(tmp_path / "run"), 0)
    assert page.run("$('ab-level').textContent") == "(A is turned down by 6.0 dB)"
    page.run("startBoth(0)")
    page.wait("players[0].currentTime > 0.05")
    assert quiet(page, path)


def test_a_blind_test_counts_right_answers_and_says_what_guessing_gives(browser, run_page):
    page = pair_opened(browser, run_page, 0)
    assert page.run("document.querySelector('.guess').hidden && hearButtons[2].hidden") is True
    page.run("$('ab-blind').click()")
    assert page.run("[hearing, sides.some((side) => side.node.classList.contains('heard'))]") == [2, False]
    for right in (True, True, False):
        page.run(f"document.querySelectorAll('.guess button')[{'isX' if right else '1 - isX'}].click()")
    said = page.run("$('ab-verdict').textContent")
    assert said.startswith("Wrong: X was ")
    assert "2 of 3 right; who only guesses does at least as well in 50% of cases" in said
    assert page.run("[byChance(0, 5), byChance(5, 5), byChance(9, 10)]") == pytest.approx([1, 1 / 32, 11 / 1024])
    page.run("isX = 0; hearNow(2)")
    assert page.run(SOUNDING) == [True, False]
    page.run("isX = 1; hearNow(2)")
    assert page.run(SOUNDING) == [False, True]
    page.run("$('ab-blind').click()")
    assert page.run("hearing") == 0


@pytest.mark.parametrize(("width", "phone", "dark"), [(1280, False, False), (390, True, True)])
def test_runs_side_by_side(browser, comparison, width, phone, dark):
    page = opened(browser, comparison, width=width, phone=phone, dark=dark)
    page.run("rows.forEach((row) => row.wake())")
    page.wait("allCharts[0].drawn")
    assert page.run("allCharts[0].plot.querySelectorAll('.curve').length") == 4
    assert page.run("allCharts[0].plot.querySelectorAll('.curve.dashed').length") == 2
    assert page.run("new Set(allCharts[0].drawn.map((line) => line.colour)).size") == 2
    assert page.run("$('evaluations').querySelectorAll('.bars').length") == 2
    assert "best 1 at step 100 (lower is better)" in page.run("$('evaluations').textContent")
    assert page.run("$('evaluations').querySelector('.recipe').textContent") == "howmels: 64"
    page.run("choose(1)")
    assert page.run("rows.slice(0, 2).map((row) => row.label.textContent)") == ["narrow, step 400", "wide, step 500"]
    assert page.run("rows[1].strip.querySelector('[aria-pressed=true]').textContent") == "500"
    assert page.run("rows[1].strip.children.length") == 3
    tops = page.run("rows.slice(0, 2).map((row) => row.node.getBoundingClientRect().top)")
    assert (tops[0] == tops[1]) is not phone
    assert page.run("document.documentElement.scrollWidth") <= width
    page.run("rows[0].button.click()")
    page.wait("!audio.paused")
    assert quiet(page, comparison)


def test_two_runs_against_each_other(browser, comparison):
    page = pair_opened(browser, comparison, 1)
    assert chosen(page) == ["step 2,000, narrow", "step 1,000, wide"]
    assert page.run("sides[0].choice.options.length") == 6


def test_all_steps_in_turn_are_those_of_the_run_itself(browser, comparison):
    page = opened(browser, comparison)
    page.run("rows.forEach((row) => row.wake()); window.played = []; audio.addEventListener('play', () => played.push(steps[selected])); 0")
    page.run("rows[1].tour.click()")
    page.wait("audio.ended && !touring && steps[selected] === 1000")
    assert page.run("[...new Set(played)]") == [0, 500, 1000]


@pytest.mark.parametrize("dark", [False, True])
def test_everything_has_a_name_and_contrast(browser, comparison, dark):
    page = pair_opened(browser, comparison, 0, dark=dark)
    page.run("$('ab-blind').click(); judge(0)")
    nameless = page.run("""[...document.querySelectorAll('button, input, a, select')].filter((node) =>
      !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length)).map((node) => node.outerHTML)""")
    assert nameless == []
    assert page.faint("dialog *") == []
    page.run("$('ab').close()")
    assert page.faint("body *") == []


def test_of_a_long_run_only_what_is_looked_at_is_decoded(browser, tmp_path):
    for step in range(40):
        write_demos(tmp_path, step * 2500, diffusion_clips(step, 40, scales=(1.0,), seconds=0.05))
    write_metrics(tmp_path, metrics_lines(100_000))
    page = opened(browser, build_report(tmp_path), height=500)
    page.wait("allCharts[0].drawn && rows[0].ready")
    assert page.run("Math.max(...allCharts.flatMap((chart) => chart.spec.series.map((series) => series.values.length)))") == 500
    assert page.run("rows.at(-1).ready") is False
    assert page.run("urls.size") < page.run("document.querySelectorAll('[data-mime]').length") / 2
    assert page.run("rows[0].strip.children.length") == 40
    assert page.run("rows[0].strip.querySelectorAll('img:not([loading=lazy])').length") == 0
    assert quiet(page, tmp_path / "index.html")
