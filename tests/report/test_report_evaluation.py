"""What `evaluate` measured, on the page: values with intervals and recipes, and curves of those that were measured in training."""

import json

import pytest
from report_samples import EVALUATION, metrics_lines, write_metrics

from stable_audio_tools.evaluation.measure import Measure
from stable_audio_tools.report.build import build_report
from stable_audio_tools.report.evaluation import evaluation_charts, evaluation_html, measured, read_evaluations
from stable_audio_tools.report.run_folder import read_run_folder

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"
DISTANCE = Measure("frechet/logmel", 0.4123, 0.39, 0.43, 48, {"embedder": "logmel", "seed": 0}, "lower", same_source=(0.1, 0.35))


def line(step: float, value: float | None) -> str:
    return json.dumps({"step": step, "metrics": [{"name": "fd", "value": value, "low": 0.5, "high": 1.5, "better": "lower"}]}) + "\n"


def test_a_metric_is_shown_with_interval_clips_direction_and_recipe():
    html = evaluation_html({"recipe": {"model": "runs/a"}, "metrics": [DISTANCE.to_dict()]})
    for text in ("frechet/logmel", "<strong>0.4123</strong>", "0.39 to 0.43", "0.1 to 0.35", "48", "↓ lower", "embedder: logmel"):
        assert text in html
    assert html.count("<table>") == 1
    assert "runs/a" in html


def test_a_share_is_shown_in_per_cent_and_a_unit_behind_its_number():
    share = Measure("pitch", 0.9375, 0.83, 0.98, 48, {}, "higher", "share")
    html = evaluation_html({"metrics": [share.to_dict(), Measure("snr", -3.25, -4, -2, 48, {}, "higher", "dB").to_dict()]})
    for text in ("<strong>93.8%</strong>", "83.0% to 98.0%", "<strong>-3.25 dB</strong>", "-4 to -2"):
        assert text in html


def test_rows_behind_a_value_are_folded_away_and_cut():
    details = [{"clip": f"{index}.wav", "closest": "train.wav", "similarity": 0.5} for index in range(30)]
    html = evaluation_html({"metrics": [{**DISTANCE.to_dict(), "details": details}]})
    assert "clip 0.wav · closest train.wav · similarity 0.5" in html
    assert "and 10 more" in html
    assert "25.wav" not in html


@pytest.mark.parametrize(
    "value", [{"metrics": "x"}, {"metrics": [1, {"value": 2}]}, [], "x", 3, None, {"metrics": [{"name": "a", "recipe": [1]}]}]
)
def test_another_form_does_not_stop_the_page(value):
    evaluation_html(value)
    measured(value)


def test_text_of_an_evaluation_stays_text():
    metric = dict.fromkeys(("name", "value", "n", "unit", "better"), HOSTILE) | {
        "recipe": {HOSTILE: HOSTILE},
        "details": [{HOSTILE: HOSTILE}],
    }
    html = evaluation_html({"recipe": {HOSTILE: HOSTILE}, "metrics": [metric], HOSTILE: {HOSTILE: HOSTILE}})
    assert "<img" not in html
    assert "</script" not in html


def test_evaluations_of_a_training_become_curves_with_intervals(tmp_path):
    (tmp_path / "evaluations.jsonl").write_text(line(100, 1.0) + line(200, None) + line(300, 0.7))
    (spec,) = evaluation_charts(read_evaluations(tmp_path / "evaluations.jsonl", []))
    (series,) = spec["series"]
    assert (series["steps"], series["values"]) == ([100, 200, 300], [1.0, None, 0.7])
    assert (series["low"], series["high"], series["bars"], series["better"]) == ([0.5] * 3, [1.5] * 3, True, "lower")


def test_the_recipe_of_a_curve_says_how_and_not_which_weights():
    recipe = {"embedder": "logmel", "noise_seed": 0, "train_step": 10, "model": "a"}
    (spec,) = evaluation_charts([{"step": 10, "metrics": [{"name": "fd", "value": 1.0, "recipe": recipe}]}])
    assert spec["series"][0]["recipe"] == "embedder: logmel\nnoise seed: 0"


def test_what_a_resume_measures_again_replaces_what_was_lost(tmp_path):
    (tmp_path / "evaluations.jsonl").write_text(line(100, 1.0) + line(200, 2.0) + line(300, 3.0) + line(200, 2.5))
    assert [entry["step"] for entry in read_evaluations(tmp_path / "evaluations.jsonl", [])] == [100, 200]


def test_lines_that_make_no_sense_are_counted_and_the_one_being_written_is_left_out(tmp_path):
    (tmp_path / "evaluations.jsonl").write_text(line(1, 1.0) + 'oops\n[1]\n{"step": "x", "metrics": []}\n\n' + line(2, 2.0)[:20])
    notes: list[str] = []
    assert len(read_evaluations(tmp_path / "evaluations.jsonl", notes)) == 1
    assert notes == ["evaluations.jsonl: 3 unreadable lines were left out."]


def test_a_metric_with_an_interval_is_not_drawn_a_second_time_without(tmp_path):
    write_metrics(tmp_path, ["step,time_s,train/loss,eval/fd,eval/other", "1,1,1.0,0.5,0.6"])
    (tmp_path / "evaluations.jsonl").write_text(line(1, 0.5))
    assert list(read_run_folder(tmp_path).logged.series) == ["train/loss", "eval/other"]


def test_an_evaluation_beyond_the_last_row_of_metrics_lies_on_the_axis(tmp_path):
    write_metrics(tmp_path, metrics_lines(10))
    (tmp_path / "evaluations.jsonl").write_text(line(40, 0.5))
    assert '"last_step":40' in build_report(tmp_path).read_text()


def test_all_numbers_of_a_nested_evaluation_can_be_compared():
    found = measured(EVALUATION)
    assert found["pitched · model · pitch"]["value"] == pytest.approx(47 / 48)
    assert found["pitched · model · pitch"]["low"] < 47 / 48
    assert found["pitched · white noise · median_cents"]["value"] == 412.0
    assert "pitched · white noise · silence" not in found
    assert found["pitched · model · pitch"]["recipe"] == EVALUATION["recipe"]
