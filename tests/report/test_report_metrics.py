"""`metrics.csv` as curves: what a crash, a resume or a growing file leaves behind must not bend them."""

import math

import pytest
from report_samples import metrics_lines

from stable_audio_tools.report.metrics import MARKS, POINTS, Metrics, MetricsReader, Series, charts, curve


def read(tmp_path, text: str) -> tuple[Metrics, list[str]]:
    notes: list[str] = []
    (tmp_path / "metrics.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return MetricsReader().read(tmp_path / "metrics.csv", notes), notes


def points(series: Series) -> list[tuple[float, float]]:
    return list(zip(series.steps, series.values, strict=True))


def test_blank_cells_are_no_points(tmp_path):
    metrics, notes = read(tmp_path, "step,time_s,train/loss,val/loss\n1,0.5,2.0,\n2,1.0,1.5,1.8\n")
    assert points(metrics.series["train/loss"]) == [(1, 2.0), (2, 1.5)]
    assert points(metrics.series["val/loss"]) == [(2, 1.8)]
    assert "time_s" not in metrics.series
    assert metrics.pace == pytest.approx(2.0)
    assert not notes


def test_the_line_that_is_being_written_is_left_out(tmp_path):
    whole = "step,time_s,train/loss\n1,0.5,2.0\n2,1.0,0.0123\n"
    for length in range(len(whole)):
        metrics, notes = read(tmp_path, whole[:length])
        assert all(point in ((1, 2.0), (2, 0.0123)) for series in metrics.series.values() for point in points(series))
        assert not notes


@pytest.mark.parametrize(
    "text",
    [
        "step,time_s,train/loss\n1,0.5,2.0\n1,0.5,2.0,1.8\n3,1.5,1.0,1.2\n",
        "step,time_s,train/loss\n1,0.5,2.0\nstep,time_s,train/loss,val/loss\n3,1.5,1.0,1.2\n",
        "step,time_s,train/loss,val/loss\n1,0.5,2.0\n3,1.5,1.0,1.2\n",
    ],
    ids=["rows outgrow the header", "header repeated", "header rewritten"],
)
def test_columns_may_grow(tmp_path, text):
    metrics, notes = read(tmp_path, text)
    assert points(metrics.series["train/loss"]) == [(1, 2.0), (3, 1.0)]
    assert not notes


def test_what_a_resume_does_again_replaces_what_was_lost(tmp_path):
    metrics, _ = read(tmp_path, "step,time_s,a\n10,1,1.0\n20,2,2.0\n30,3,3.0\n20,9,2.5\n30,10,3.5\n")
    assert points(metrics.series["a"]) == [(10, 1.0), (20, 2.5), (30, 3.5)]


def test_rubbish_is_counted_and_left_out(tmp_path):
    rubbish = b'step,time_s,a\n1,0.5,2.0\n\x00\x00\x00\nnan,1,5\n2,1,abc\n"3,1,7\n4,2,\xff\xfe\n5,2.5,1.0\r\n'
    metrics, notes = read(tmp_path, rubbish.decode("latin-1").encode("latin-1"))
    assert points(metrics.series["a"]) == [(1, 2.0), (5, 1.0)]
    assert notes == ["metrics.csv: 5 unreadable lines or cells were left out."]


def test_a_missing_an_empty_and_a_folder_file(tmp_path):
    notes: list[str] = []
    assert not MetricsReader().read(tmp_path / "none.csv", notes).series
    assert not notes
    assert not read(tmp_path, "")[0].series
    assert read(tmp_path, "step,time_s\n")[0].pace is None
    (tmp_path / "folder.csv").mkdir()
    assert not MetricsReader().read(tmp_path / "folder.csv", notes).series
    assert notes
    assert notes[0].startswith("metrics.csv could not be read")


def test_a_value_that_is_no_number_is_a_gap_with_a_mark():
    series = Series()
    for step, value in enumerate([1.0, math.nan, 3.0, math.inf, -math.inf, 2.0]):
        series.add(step, value)
    assert curve(series) == {"steps": [0, 1, 2, 3, 4, 5], "values": [1.0, None, 3.0, None, None, 2.0], "bad": [1, 3, 4]}
    assert series.last == 2.0
    assert series.best == (0, 1.0)


def test_a_long_curve_keeps_its_range_and_mean():
    series = Series()
    for step in range(5003):
        series.add(step, math.nan if step % 1000 == 7 else math.sin(step))
    series.values[1234] = 50.0
    drawn = curve(series)
    assert len(drawn["steps"]) == len(drawn["values"]) == len(drawn["low"]) == len(drawn["high"]) == POINTS
    assert drawn["steps"] == sorted(set(drawn["steps"]))
    assert max(drawn["high"]) == 50.0
    assert all(low <= mean <= high for low, mean, high in zip(drawn["low"], drawn["values"], drawn["high"], strict=True))
    assert drawn["bad"] == [7, 1007, 2007, 3007, 4007, 5002 // 1000 * 1000 + 7][: len(drawn["bad"])]


def test_a_curve_of_nothing_but_nan():
    series = Series()
    for step in range(2000):
        series.add(step, math.nan)
    drawn = curve(series)
    assert set(drawn["values"]) == {None}
    assert len(drawn["bad"]) <= MARKS
    assert series.last is None
    assert series.best is None


def test_values_beyond_float_do_not_warn(recwarn):
    series = Series()
    for step in range(2000):
        series.add(step, 1e308)
    curve(series)
    assert not recwarn.list


def test_the_loss_comes_first_and_splits_share_a_chart(tmp_path):
    header = "step,time_s,train/lr,train/loss_dis,train/loss,val/loss,system/gpu"
    metrics, _ = read(tmp_path, f"{header}\n1,1,1,1,1,1,1\n")
    names = [(chart["title"], [series["name"] for series in chart["series"]]) for chart in charts(metrics)]
    assert names == [
        ("loss", ["train/loss", "val/loss"]),
        ("loss_dis", ["train/loss_dis"]),
        ("lr", ["train/lr"]),
        ("system/gpu", ["system/gpu"]),
    ]


def test_speed_is_that_of_late(tmp_path):
    slow = [f"{step},{step * 10},1" for step in range(1, 81)]
    fast = [f"{step},{800 + (step - 80) * 0.5},1" for step in range(81, 101)]
    metrics, _ = read(tmp_path, "\n".join(["step,time_s,a", *slow, *fast, ""]))
    assert metrics.pace == pytest.approx(2.0, rel=0.05)


def test_a_file_that_grew_is_read_on_and_one_that_changed_is_read_anew(tmp_path, monkeypatch):
    path, notes, taken = tmp_path / "metrics.csv", [], []
    reader = MetricsReader()
    take = reader._take
    monkeypatch.setattr(reader, "_take", lambda cells: (taken.append(cells), take(cells)))
    lines = ["step,time_s,a", "10,1,1.0", "20,2,2.0", "30,3,oops", "20,9,2.5", "30,10,3.5"]
    for count in range(len(lines) + 1):
        text = "".join(f"{line}\n" for line in lines[:count])
        path.write_text(text + lines[count][:3] if count < len(lines) else text)
        grown, whole = reader.read(path, notes), MetricsReader().read(path, [])
        assert grown == whole
        assert len(taken) == count
    assert notes[-1] == "metrics.csv: 1 unreadable lines or cells were left out."
    path.write_text("step,time_s,b,a\n10,1,,7.0\n")
    changed = reader.read(path, [])
    assert points(changed.series["a"]) == [(10, 7.0)]
    path.unlink()
    assert not reader.read(path, []).series


def test_five_thousand_rows(tmp_path):
    metrics, notes = read(tmp_path, "\n".join([*metrics_lines(5000), ""]))
    assert not notes
    assert len(metrics.series["train/loss"].steps) == 5000
    assert all(len(series["values"]) <= POINTS for chart in charts(metrics) for series in chart["series"])
