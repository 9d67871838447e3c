"""One page for several runs: what differs, curves over one another, and the same prompts side by side at the nearest step."""

import json

import pytest
from report_samples import DATASET, MODEL, autoencoder_clips, diffusion_clips, make_run, run_state, write_demos
from report_text import HOSTILE, Page

from stable_audio_tools.report import build_comparison, build_report, compare
from stable_audio_tools.report.alignment import align, nearest
from stable_audio_tools.report.compare import leaves
from stable_audio_tools.report.demos import read_demos


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: the second is wider, has other demo steps and lives in another folder."""
    folder = tmp_path_factory.mktemp("runs")
    first = make_run(folder / "a", demo_steps=(0, 400, 2000), name="narrow")
    second = make_run(folder / "deep" / "b", demo_steps=(0, 500, 1000), name="wide")
    config = json.loads(json.dumps(MODEL))
    config["model"]["diffusion"]["config"]["embed_dim"] = 320
    del config["training"]["cfg_dropout_prob"]
    (second / "config.json").write_text(json.dumps(config))
    (second / "dataset.json").write_text(json.dumps(DATASET | {"config": {**DATASET["config"], "notes": ["A3"]}}))
    return first, second


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "cmp.html"
    assert build_comparison(runs, out) == out
    return Page(out)


def test_only_what_differs_is_in_the_table(page):
    text = page.text
    for setting in (
        "config · model.diffusion.config.embed_dim160320",
        "config · training.cfg_dropout_prob0.1–",
        'dataset · config.notes["A3", "A5"]["A3"]',
    ):
        assert setting in text
    assert "config.depth" not in text
    assert "sample_rate" not in text
    assert "args · name" not in text
    assert "settings are the same." in text


def test_equal_runs_say_so(runs, tmp_path):
    page = Page(build_comparison([runs[0], runs[0]], tmp_path / "c.html"))
    assert "Nothing differs" in page.text


def test_curves_share_charts_and_axes(page):
    loss = page.data["charts"][0]
    assert loss["title"] == "loss"
    assert [series["name"] for series in loss["series"]] == [
        "narrow · train/loss",
        "narrow · val/loss",
        "wide · train/loss",
        "wide · val/loss",
    ]
    assert [series["colour"] for series in loss["series"]] == [0, 0, 1, 1]
    assert [series["dashed"] for series in loss["series"]] == [False, True, False, True]
    assert page.data["last_step"] == 2000


def test_each_run_has_the_clip_of_its_nearest_step(page):
    demos = page.data["demos"]
    assert demos["steps"] == [0, 400, 500, 1000, 2000]
    group = demos["groups"][0]
    shown = {row["run"]: [row["clips"][at]["step"] for at in row["nearest"]] for row in group["rows"]}
    assert shown == {"narrow": [0, 400, 400, 400, 2000], "wide": [0, 500, 500, 1000, 1000]}
    assert [row["line"] for row in group["rows"]] == [0, 0]


def test_an_original_is_kept_once(page):
    rows = [row for group in page.data["demos"]["groups"] for row in group["rows"] if row["kind"] == "original"]
    assert [row["run"] for row in rows] == ["narrow"]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    made = [tmp_path / name for name in ("x", "y", "deep/y")]
    for run in made:
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps(run_state(1)))
    page = Page(build_comparison(made[:2], tmp_path / "c.html"))
    assert "Comparison of quick start (x) and quick start (y)" in page.text
    page = Page(build_comparison(made, tmp_path / "c.html"))
    assert f"quick start (x)quick start ({made[1]})quick start ({made[2]})" in page.text


def test_what_does_not_fit_is_linked_relative_to_the_page(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "EMBED_BUDGET", 0)
    out = runs[1].parent / "cmp.html"
    page = Page(build_comparison(runs, out))
    clips = [clip for group in page.data["demos"]["groups"] for row in group["rows"] for clip in row["clips"]]
    assert clips
    assert all((out.parent / clip["sound"]["url"]).is_file() and (out.parent / clip["picture"]["url"]).is_file() for clip in clips)
    assert {clip["sound"]["url"].split("/")[0] for clip in clips} == {"..", "b"}
    assert page.data["demos"]["embedded"] == [False] * 5


def test_it_links_to_the_page_of_each_run(runs, tmp_path):
    build_report(runs[0])
    page = Page(build_comparison(runs, tmp_path / "c.html"))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert len(links) == 1
    assert (tmp_path / links[0]).resolve() == (runs[0] / "index.html").resolve()


def metric(value: float, recipe: dict) -> dict:
    return {"name": "fd", "value": value, "low": value - 0.1, "high": value + 0.1, "n": 48, "better": "lower", "recipe": recipe}


@pytest.mark.parametrize(
    ("recipe", "other", "data", "said"),
    [
        ({"seed": 0, "model": "a"}, {"seed": 0, "model": "b"}, {"seed": 5}, "same"),
        ({"seed": 0, "model": "a"}, {"seed": 1, "model": "b"}, {"seed": 5}, "differs: not comparable"),
        ({"compared_with": "the run's dataset.json"}, {"compared_with": "the run's dataset.json"}, {"seed": 6}, "differs: not comparable"),
        ({"compared_with": "test.json"}, {"compared_with": "test.json"}, {"seed": 6}, "same"),
    ],
)
def test_evaluations_stand_side_by_side_and_say_whether_they_compare(tmp_path, recipe, other, data, said):
    for name, value, how, dataset in (("a", 0.5, recipe, {"seed": 5}), ("b", 0.4, other, data)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.json").write_text(json.dumps({"metrics": [metric(value, how)]}))
        (tmp_path / name / "dataset.json").write_text(json.dumps(dataset))
    source = build_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "c.html").read_text()
    assert f"<td>0.5 (0.4 to 0.6)</td><td><strong>0.4</strong> (0.3 to 0.5)</td><td>{said}" in source.replace('<strong class="warn">', "")


@pytest.mark.parametrize("odd", [[], {}, [1, {}], {"a": []}, True, 1e400, "x"], ids=repr)
def test_odd_metrics_do_not_stop_the_page(tmp_path, odd):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        value = metric(1, {}) | dict.fromkeys(("value", "low", "n", "unit", "better", "recipe", "same_source", "details"), odd)
        (tmp_path / name / "evaluation.json").write_text(json.dumps({"recipe": odd, "metrics": [value, odd], "more": odd}))
        (tmp_path / name / "evaluations.jsonl").write_text(json.dumps({"step": 3, "metrics": [value, odd]}) + "\n")
        build_report(tmp_path / name)
    assert "fd" in Page(build_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "c.html")).text


def test_text_of_any_run_stays_text(tmp_path):
    made = []
    for name in ("x", "y"):
        run = tmp_path / name
        run.mkdir()
        (run / "run.json").write_text(json.dumps(run_state(1, name=HOSTILE + name, device=HOSTILE, status=HOSTILE)))
        (run / "config.json").write_text(json.dumps({HOSTILE: HOSTILE + name}))
        (run / "evaluation.json").write_text(json.dumps({"metrics": [metric(1, {}) | {"name": HOSTILE, "value": HOSTILE}]}))
        (run / "dataset.json").write_text("{")
        clip = diffusion_clips(1, 1, prompts=1, scales=(1.0,), seconds=0.05)[0]
        write_demos(run, 1, [clip | dict.fromkeys(("title", "prompt", "group", "kind"), HOSTILE)])
        made.append(run)
    page = Page(build_comparison(made, tmp_path / "c.html"))
    assert page.count("img") == 0
    assert page.count("script") == 1 + 1 + 2  # data, script, a sound and a picture
    assert HOSTILE in page.text
    assert "dataset.json could not be read" in page.text


def test_a_missing_folder(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder at"):
        build_comparison([runs[0], tmp_path / "nowhere"], tmp_path / "c.html")


def test_empty_runs(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    page = Page(build_comparison([tmp_path / "x", tmp_path / "y"], tmp_path / "c.html"))
    assert page.data["charts"] == []
    assert page.data["demos"] == {"steps": [], "embedded": [], "groups": []}


def aligned(tmp_path, *runs):
    """What stands on each line: guidance scale (or kind) of each run."""
    read = []
    for index, clips in enumerate(runs):
        write_demos(tmp_path / str(index), 0, clips)
        read.append(read_demos(tmp_path / str(index) / "demos", []))

    def label(row):
        return row and (dict(row.first.settings).get("CFG") or row.first.kind)

    return [(title, [[label(row) for row in line] for line in lines]) for title, lines in align(read)]


def test_rows_of_the_same_settings_share_a_line_and_the_rest_shares_what_is_left(tmp_path):
    first = diffusion_clips(1, 1, prompts=1, scales=(1.0, 2.5), seconds=0.05)
    second = diffusion_clips(1, 1, prompts=1, scales=(4.0, 2.5), seconds=0.05)
    assert aligned(tmp_path, first, second) == [(first[0]["prompt"], [["1", "4"], ["2.5", "2.5"]])]


def test_a_prompt_is_found_again_wherever_it_stands_in_the_list(tmp_path):
    first = diffusion_clips(1, 1, prompts=2, scales=(1.0,), seconds=0.05)
    second = [clip | {"group": f"{index + 1}. {clip['prompt']}"} for index, clip in enumerate(reversed(first))]
    assert aligned(tmp_path, first, second[:1]) == [(first[0]["prompt"], [["1", None]]), (first[1]["prompt"], [["1", "1"]])]


def test_originals_come_first_whatever_the_order_of_the_runs(tmp_path):
    clips = autoencoder_clips(1, 1, seconds=0.05)[:2]
    (found,) = aligned(tmp_path, clips[1:], clips)
    assert found[1] == [[None, "original"], ["reconstruction", "reconstruction"]]


@pytest.mark.parametrize(("step", "index"), [(0, 0), (149, 0), (150, 1), (200, 1), (251, 2), (9999, 2)])
def test_nearest(step, index):
    assert nearest([100, 200, 300], step) == index


def test_leaves_of_a_document():
    document = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}, [3]], "f": {}}
    assert dict(leaves(document)) == {("f",): {}, ("a", "b"): 1, ("a", "c"): [1, 2], ("d", "0", "e"): None, ("d", "1"): [3]}
