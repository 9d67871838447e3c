"""What a run takes, as planned and as measured, and what its data are."""

import json

from report_samples import metrics_lines, run_state, write_metrics

from stable_audio_tools.report import build_report
from stable_audio_tools.report.facts import cost_facts, data_facts, parts, state_facts
from stable_audio_tools.report.run_folder import read_run_folder

PLAN = {
    "batch_size": 32,
    "parts": [
        {"name": "model", "parameters": 2_131_616, "trainable": 2_131_616},
        {"name": "pretransform", "parameters": 5000, "trainable": 0},
    ],
    "flops": 11_630_239_744,
    "memory": {"weights": 9_963_840, "average": 0, "activations": 81_435_965, "total": 121_268_931},
    "checkpoint": 39_832_966,
}
RUN = {"batch_size": 8, "devices": 4, "accum_batches": 2, "precision": "bf16-mixed", "peak_memory": 200 * 2**20}


def folder(path, run, plan=None):
    (path / "run.json").write_text(json.dumps(run))
    if plan:
        (path / "plan.json").write_text(json.dumps(plan))
    write_metrics(path, metrics_lines(20))  # 0.12 s a step
    return read_run_folder(path)


def test_planned_and_measured_memory_stand_side_by_side(tmp_path):
    facts = dict(cost_facts(folder(tmp_path, run_state(20) | RUN, PLAN)))
    assert facts["Batch"] == "8 x 4 devices x 2 batches = 64 clips"
    assert facts["Peak memory a device"] == "measured 200 MiB · planned 116 MiB"
    assert facts["Operations a step"] == "11.6 GFLOP"
    assert facts["Rate"] == "96.9 GFLOP/s a device"  # 11.6 in 0.12 s
    assert facts["A train step"] == "0.12 s"
    assert facts["Planned for"] == "weights 9.5 MiB, activations 77.7 MiB"


def test_without_a_plan_there_is_what_was_measured(tmp_path):
    facts = dict(cost_facts(folder(tmp_path, run_state(20) | {"batch_size": 8})))
    assert facts["Batch"] == "8 clips"
    assert not facts.keys() & {"Operations a step", "Rate", "A checkpoint", "Peak memory a device"}


def test_parts_are_those_of_the_run_else_of_the_plan(tmp_path):
    assert parts(folder(tmp_path, run_state(20), PLAN)) == [("model", 2_131_616, 2_131_616), ("pretransform", 5000, 0)]
    own = [{"name": "mine", "parameters": 3, "trainable": 1}, {"name": "odd", "parameters": "x"}, 7]
    assert parts(folder(tmp_path, run_state(20, parts=own), PLAN)) == [("mine", 3, 1)]
    page = build_report(tmp_path).read_text()
    assert "What it takes" in page


def test_wrong_types_in_any_file_are_as_good_as_nothing(tmp_path):
    odd = {"x": [float("inf")]}
    keys = (*RUN, "parts", "peak_process_memory")
    found = folder(tmp_path, run_state(20) | dict.fromkeys(keys, odd), dict.fromkeys(PLAN, odd) | {"memory": {"total": "x"}})
    assert [name for name, _ in cost_facts(found)] == ["Precision", "A train step"]
    assert state_facts(found)
    (tmp_path / "data.json").write_text(
        json.dumps({"folders": [odd, 3, {"id": odd, "files": "x", "seconds": 5, "formats": [1], "bad": 7}]})
    )
    build_report(tmp_path)


def test_data_in_words(tmp_path):
    report = {
        "id": "drums",
        "path": "/data/drums",
        "files": 1200,
        "captioned": 900,
        "hours": 3.5,
        "seconds": [0.5, 8.25, 31.0],
        "sample_rates": {"44100 Hz": 1000, "48000 Hz": 200},
        "num_bad": 3,
    }
    facts = dict(data_facts(report))
    assert facts == {
        "Where": "/data/drums",
        "Items": "1,200",
        "With a caption": "900 (75%)",
        "Length in all": "3.50 hours",
        "Shortest, median, longest": "0.5 s, 8.25 s, 31 s",
        "Sample rates": "44100 Hz (1,000), 48000 Hz (200)",
        "Left out as bad": "3 files",
    }
    (tmp_path / "data.json").write_text(json.dumps({"folders": [report]}))
    page = build_report(tmp_path).read_text()
    assert "drums" in page
    assert "900 (75%)" in page
