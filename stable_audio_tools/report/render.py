"""The page of one run: fills `run.html` with escaped text and tables.

What a reader needs without scripts (state, figures, evaluation, setup) is HTML made here; curves and players are drawn by the
page's script from the JSON in the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from string import Template
from typing import Any

from stable_audio_tools.report.document import asset, definitions, document, scaled, string, table
from stable_audio_tools.report.evaluation import evaluation_html, measured_sections
from stable_audio_tools.report.facts import cost_facts, data_facts, parts, state_facts
from stable_audio_tools.report.media import Media
from stable_audio_tools.report.run_folder import RunFolder
from stable_audio_tools.report.values import items, mapping, number

SETUP_TITLES = {"config.json": "Model config", "dataset.json": "Dataset", "args.json": "Options"}


def page(folder: RunFolder, data: Mapping[str, Any], media: Iterable[Media]) -> str:
    """The whole document; `data` is what its script reads."""
    cost, sources = _cost(folder), _data(folder)
    content = Template(asset("run.html")).substitute(
        name=escape(folder.name),
        status=escape(folder.status),
        progress=_progress(folder.run),
        problem=_problem(folder.run),
        facts=definitions(state_facts(folder)),
        listen=asset("listen.html"),
        measured=measured_sections(evaluation_html(folder.evaluation), curves=bool(data["evaluations"])),
        no_cost="" if cost else " hidden",
        cost=cost,
        no_sources="" if sources else " hidden",
        sources=sources,
        resume=escape(string(folder.run.get("resume") or "")),
        setup="\n".join(_setup(name, value) for name, value in folder.setup.items()),
        versions=definitions((str(name), string(version)) for name, version in mapping(folder.run.get("versions")).items()),
        notes="".join(f"<li>{escape(note)}</li>" for note in folder.notes),
    )
    return document(f"{folder.name} · {folder.status}", content, scripts=("setup.js", "run.js"), data=data, media=media)


def _progress(run: Mapping[str, Any]) -> str:
    step, last = number(run.get("step")), number(run.get("max_steps"))
    if step is None or not last or last < 0:
        return ""
    return f'<progress max="{last:g}" value="{min(step, last):g}" aria-label="Progress of the run"></progress>'


def _problem(run: Mapping[str, Any]) -> str:
    error = string(run.get("error"))
    return f'<p class="problem" role="alert"><strong>What went wrong:</strong> {escape(error)}</p>' if error else ""


def _cost(folder: RunFolder) -> str:
    """What the run takes, and the parts of the model; nothing where no more is known than stands at the top of the page."""
    if not folder.plan and not folder.run.keys() & {"parts", "peak_memory", "batch_size"}:
        return ""
    rows = [(name, (scaled(total), scaled(trained) if trained else "frozen")) for name, total, trained in parts(folder)]
    shares = table("Parts of the model", ("Parameters", "Trained"), rows) if rows else ""
    return f'<div class="plain"><dl class="facts">{definitions(cost_facts(folder))}</dl></div>{shares}'


def _data(folder: RunFolder) -> str:
    """A block for each source of training data."""
    return "".join(
        f'<div class="plain"><h3>{escape(string(source.get("id")))}</h3><dl class="facts">{definitions(data_facts(source))}</dl></div>'
        for source in map(mapping, items(folder.data.get("folders")))
        if source
    )


def _setup(name: str, value: Any) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return (
        f'<details class="document"><summary>{escape(SETUP_TITLES[name])} <span class="file">{escape(name)}</span></summary>'
        f'<pre tabindex="0">{escape(text)}</pre></details>'
    )
