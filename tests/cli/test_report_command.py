"""`report`: the page of a run built anew, a page that compares runs, and what can be wrong with either."""

import json
import shutil
from pathlib import Path

import pytest

from stable_audio_tools.cli.main import main


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    made = [tmp_path / "runs" / name for name in ("a", "b")]
    for run in made:
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({"name": run.name, "status": "finished", "step": 3}))
        (run / "metrics.csv").write_text("step,time_s,train/loss\n1,0.1,2.0\n3,0.3,1.0\n")
    return made


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def test_one_run_gets_its_page(runs, capsys):
    assert report(runs[0]) == 0
    assert capsys.readouterr().out.strip() == str(runs[0] / "index.html")
    assert "finished" in (runs[0] / "index.html").read_text()


def test_several_runs_get_a_page_where_it_is_wanted(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report(*runs) == 0
    assert capsys.readouterr().out.strip() == "comparison.html"
    assert report(*runs, "--out", tmp_path / "page.html") == 0
    assert (tmp_path / "page.html").read_text() == (tmp_path / "comparison.html").read_text()
    assert not (runs[0] / "index.html").exists()


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_written(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert report(runs[0], runs[0], tmp_path / "empty", tmp_path / "runs", tmp_path / "none", "--out", tmp_path / "no" / "c.html") == 2
    said = capsys.readouterr().err
    assert "a run is named twice" in said
    assert f"{tmp_path / 'empty'} is not the folder of a run: it has no run.json, config.json, metrics.csv" in said
    assert f"did you mean {runs[0]} {runs[1]}?" in said
    assert f"there is no folder {tmp_path / 'none'}" in said
    assert f"there is no folder {tmp_path / 'no'}" in said
    assert not list(tmp_path.rglob("*.html"))


def test_a_page_of_its_own_for_one_run_is_refused(runs, tmp_path, capsys):
    assert report(runs[0], "--out", tmp_path / "c.html") == 2
    assert f"whose page is {runs[0] / 'index.html'}" in capsys.readouterr().err
    assert report(*runs, "--out", tmp_path) == 2
    assert f"name a file, such as {tmp_path / 'comparison.html'}" in capsys.readouterr().err


def test_more_runs_than_colours(runs, tmp_path, capsys):
    made = [Path(shutil.copytree(runs[0], tmp_path / f"run{index}")) for index in range(9)]
    assert report(*made, "--out", tmp_path / "c.html") == 2
    assert "one page compares 8 at most" in capsys.readouterr().err
    assert report(*made[:8], "--out", tmp_path / "c.html") == 0


@pytest.mark.slow
def test_a_plan_is_worked_out_with_the_batch_and_precision_of_the_run(runs, capsys):
    config = Path(__file__).parents[2] / "model_configs" / "quickstart" / "text_to_audio.json"
    shutil.copy(config, runs[0] / "config.json")
    (runs[0] / "args.json").write_text(json.dumps({"batch_size": 3, "precision": "auto"}))
    (runs[0] / "run.json").write_text(json.dumps({"precision": "bf16-mixed", "accum_batches": 2}))
    assert report(runs[0], "--plan") == 0
    plan = json.loads((runs[0] / "plan.json").read_text())
    assert (plan["batch_size"], plan["precision"]) == (3, "bf16-mixed")
    assert "FLOP" in (runs[0] / "index.html").read_text()


def test_a_plan_needs_the_config_of_the_run(runs, capsys):
    assert report(runs[0], "--plan") == 2
    assert str(runs[0] / "config.json") in capsys.readouterr().err
