"""One page for several runs: curves over one another, what their setups differ in, evaluations and demos side by side."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from stable_audio_tools.report.alignment import Line, align, nearest
from stable_audio_tools.report.document import asset, document, figure, replace_file, string, table, words
from stable_audio_tools.report.evaluation import better, evaluation_charts, interval, measured, measured_sections, method, reading
from stable_audio_tools.report.facts import cost_facts, state_facts
from stable_audio_tools.report.media import EMBED_BUDGET, MediaCache, choose_embedded
from stable_audio_tools.report.metrics import charts, rank
from stable_audio_tools.report.players import Players
from stable_audio_tools.report.run_folder import RunFolder, read_run_folder
from stable_audio_tools.report.values import number

MOST_RUNS = 8  # lines of a chart that can be told apart
SELF_EVIDENT = {("args.json", "name"), ("args.json", "save_dir"), ("args.json", "recover")}  # differ whenever runs do
OWN_DATA = "the run's"  # what a recipe is compared with begins so where no data were named
Leaf = tuple[str, ...]


def build_comparison(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write a page that compares runs, the first of them being what the others are held against.

    Sounds that do not fit into the page are linked: the page then has to stay where it is relative to the run folders.

    Args:
        run_dirs: 2 to `MOST_RUNS` run folders. out: the page.

    Raises:
        FileNotFoundError: there is no folder at one of `run_dirs`.
        OSError: the page cannot be written.
    """
    folders = [read_run_folder(Path(path)) for path in run_dirs]
    names = _names(folders)
    cache = MediaCache()
    embedded = [choose_embedded(folder.demos, cache, EMBED_BUDGET // len(folders)) for folder in folders]
    players = Players(set().union(*embedded), cache, out.parent)
    data = {
        "last_step": max(folder.last_step for folder in folders),
        "resumed": [],
        "charts": _overlaid(names, (charts(folder.logged) for folder in folders)),
        "evaluations": _overlaid(names, (evaluation_charts(folder.evaluations) for folder in folders)),
        "demos": _demos(names, folders, players),
    }
    title = f"Comparison of {' and '.join(names) if len(names) == 2 else f'{len(names)} runs'}"
    content = Template(asset("comparison.html")).substitute(
        title=escape(title),
        facts=_facts(names, folders, out.parent),
        differences=_differences(names, folders),
        measured=measured_sections(_evaluations(names, folders), curves=bool(data["evaluations"])),
        listen=asset("listen.html"),
        notes="".join(
            f"<li>{escape(f'{name}: {note}')}</li>" for name, folder in zip(names, folders, strict=True) for note in folder.notes
        ),
    )
    return replace_file(out, document(title, content, scripts=("comparison.js",), data=data, media=players.media.values()))


def _names(folders: Sequence[RunFolder]) -> list[str]:
    """The runs' names; where two are the same, with the folder's, or with all of its path where these are the same, too."""
    names, ends = (Counter(found) for found in ([folder.name for folder in folders], [folder.path.resolve().name for folder in folders]))

    def unlike(folder: RunFolder) -> str:
        end = folder.path.resolve().name
        return f"{folder.name} ({end if ends[end] == 1 else folder.path})"

    return [folder.name if names[folder.name] == 1 else unlike(folder) for folder in folders]


def _overlaid(names: Sequence[str], runs: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Charts of the same title as one, each run in its colour, validation dashed."""
    merged: dict[str, list[dict[str, Any]]] = {}
    for index, (name, specs) in enumerate(zip(names, runs, strict=True)):
        for spec in specs:
            for series in spec["series"]:
                more = {"name": f"{name} · {series['name']}", "colour": index, "dashed": series["name"].startswith(("val/", "test/"))}
                merged.setdefault(spec["title"], []).append({**series, **more})
    return [{"title": title, "series": merged[title]} for title in sorted(merged, key=rank)]


def _facts(names: Sequence[str], folders: Sequence[RunFolder], base: Path) -> str:
    """The runs' figures, one column a run."""
    columns = [{"Status": folder.status, **dict(state_facts(folder)), **dict(cost_facts(folder))} for folder in folders]
    rows = [("Report", [_link(index, folder, base) for index, folder in enumerate(folders)])]
    for name in dict.fromkeys(name for column in columns for name in column):
        rows.append((name, [escape(column.get(name, "–")) for column in columns]))
    return table("", names, rows)


def _link(index: int, folder: RunFolder, base: Path) -> str:
    """The run's colour, and its own page where there is one."""
    page, swatch = folder.path / "index.html", f'<span class="swatch run-{index}"></span>'
    if not page.is_file():
        return f"{swatch}none"
    address = quote(os.path.relpath(os.path.abspath(page), os.path.abspath(base)).replace(os.sep, "/"))
    return f'{swatch}<a href="{escape(address)}">open</a>'


def _differences(names: Sequence[str], folders: Sequence[RunFolder]) -> str:
    """What was asked for differently: one row a setting, and how many are the same."""
    setups = [dict(leaves(folder.setup)) for folder in folders]
    every = [leaf for leaf in dict.fromkeys(leaf for setup in setups for leaf in setup) if leaf not in SELF_EVIDENT]
    different = [leaf for leaf in every if any(leaf not in setup or setup[leaf] != setups[0].get(leaf) for setup in setups)]
    rows = [
        (
            f"{leaf[0].removesuffix('.json')} · {'.'.join(leaf[1:])}",
            [escape(figure(setup[leaf]) if leaf in setup else "–") for setup in setups],
        )
        for leaf in different
    ]
    same = f"{len(every) - len(different):,} settings are the same."
    return (table("", names, rows) if rows else "") + f'<p class="hint">{same if rows else f"Nothing differs: {same}"}</p>'


def leaves(value: Any, path: Leaf = ()) -> Iterable[tuple[Leaf, Any]]:
    """Path and value of everything that a document holds; a list of plain values is one value."""
    deeper: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping) and value:
        deeper = ((str(name), item) for name, item in value.items())
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        deeper = ((str(index), item) for index, item in enumerate(value))
    else:
        yield path, value
    for name, item in deeper:
        yield from leaves(item, (*path, name))


def _evaluations(names: Sequence[str], folders: Sequence[RunFolder]) -> str:
    """What was measured of each run, the best in bold where it is known which is better; and whether the recipes agree."""
    runs = [measured(folder.evaluation) for folder in folders]
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run):
        metrics = [run.get(name, {}) for run in runs]
        best = _best(metrics)
        recipes = [_method(metric.get("recipe"), folder) for metric, folder in zip(metrics, folders, strict=True) if metric]
        recipe = "same" if all(recipe == recipes[0] for recipe in recipes) else '<strong class="warn">differs: not comparable</strong>'
        cells = [_value(metric, bold=index == best) for index, metric in enumerate(metrics)]
        rows.append((words(name), [*cells, recipe if len(recipes) > 1 else "–"]))
    return table("", (*names, "Recipe"), rows) if rows else ""


def _method(recipe: Any, folder: RunFolder) -> Any:
    """How it was measured, with the run's own data where it was measured on these."""
    if not isinstance(recipe, dict):
        return recipe
    own = string(recipe.get("compared_with") or OWN_DATA).startswith(OWN_DATA)
    return method(recipe) | ({"dataset": folder.setup.get("dataset.json")} if own else {})


def _best(metrics: Sequence[Mapping[str, Any]]) -> int | None:
    """Index of the best value, None where there is none or nobody knows which is better."""
    values = {index: value for index, metric in enumerate(metrics) if (value := number(metric.get("value"))) is not None}
    ways = {better(metric) for metric in metrics if metric}
    if len(values) < 2 or ways not in ({"lower"}, {"higher"}):
        return None
    return (min if ways == {"lower"} else max)(values, key=lambda index: values[index])


def _value(metric: Mapping[str, Any], *, bold: bool) -> str:
    text, spread = escape(reading(metric)), interval(metric)
    return (f"<strong>{text}</strong>" if bold else text) + escape(f" ({spread})" if spread else "")


def _demos(names: Sequence[str], folders: Sequence[RunFolder], players: Players) -> dict[str, Any]:
    """The same prompts of all runs: at each step of any run, each run has the clip of its nearest step."""
    steps = sorted({demo.step for folder in folders for demo in folder.demos})
    inside = {demo.step for folder in folders for demo in folder.demos if any(map(players.embeds, demo.clips))}
    groups = []
    for title, lines in align([folder.demos for folder in folders]):
        rows = [row for number, line in enumerate(lines) for row in _rows(names, line, number, steps, players)]
        groups.append({"title": title, "rows": rows})
    return {"steps": steps, "embedded": [step in inside for step in steps], "groups": groups}


def _rows(names: Sequence[str], line: Line, number: int, steps: Sequence[int], players: Players) -> Iterable[dict[str, Any]]:
    for name, row in zip(names, line, strict=True):
        if row is not None:
            made = [clip for clip in row.clips if clip is not None]
            at = [nearest([clip.step for clip in made], step) for step in steps]
            yield players.row(row.first, made) | {"run": name, "line": number, "nearest": at}
