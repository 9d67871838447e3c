"""Turns the run's data into the page: fills `page.html` with escaped text, tables, the script's data and the media.

What a reader needs without scripts (state, figures, evaluation, setup) is HTML made here; curves and players are drawn by
`page.js` from the JSON in the page. Nothing from the run folder enters the page unescaped, and a content security policy
lets the page run its own script only and open no connection.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from string import Template
from typing import Any

from stable_audio_tools.report.media import Media
from stable_audio_tools.report.metrics import Metrics
from stable_audio_tools.report.run_folder import RunFolder, number

STATUSES = ("running", "finished", "stopped", "failed")
SETUP_TITLES = {"config.json": "Model config", "dataset.json": "Dataset", "args.json": "Options"}


def page(folder: RunFolder, data: Mapping[str, Any], media: Iterable[Media]) -> str:
    """The whole document."""
    script, style = _asset("page.js"), _asset("page.css")
    name = string(folder.run.get("name")) or folder.path.resolve().name
    return Template(_asset("page.html")).substitute(
        policy=_policy(script, style),
        style=style,
        script=script,
        title=escape(f"{name} · {status(folder.run)}"),
        name=escape(name),
        status=escape(status(folder.run)),
        progress=_progress(folder.run),
        problem=_problem(folder.run),
        facts=_definitions(_facts(folder)),
        evaluation=_evaluation(folder.evaluation),
        resume=escape(string(folder.run.get("resume") or "")),
        setup="\n".join(_setup(name, value) for name, value in folder.setup.items()),
        versions=_definitions(_versions(folder.run)),
        notes="".join(f"<li>{escape(note)}</li>" for note in folder.notes),
        data=script_json(data),
        media="\n".join(_media_element(item) for item in _unique(media)),
    )


def _asset(name: str) -> str:
    return resources.files("stable_audio_tools.report").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str, style: str) -> str:
    """Content security policy: own script and style by hash, media from the page and its folder, nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    sources = "blob: data: file: 'self'"
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        f"img-src {sources}; media-src {sources}; base-uri 'none'; form-action 'none'"
    )


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _unique(media: Iterable[Media]) -> list[Media]:
    return list({item.key: item for item in media}.values())


def _media_element(media: Media) -> str:
    """A data block: the browser keeps it as text until the page's script asks for it."""
    return f'<script type="text/plain" id="media-{media.key}" data-mime="{media.mime}">{media.base64}</script>'


def status(run: Mapping[str, Any]) -> str:
    """The run's state as one of `STATUSES`, or "unknown"."""
    return run["status"] if run.get("status") in STATUSES else "unknown"


def _progress(run: Mapping[str, Any]) -> str:
    step, last = number(run.get("step")), number(run.get("max_steps"))
    if step is None or not last or last < 0:
        return ""
    return f'<progress max="{last:g}" value="{min(step, last):g}" aria-label="Progress of the run"></progress>'


def _problem(run: Mapping[str, Any]) -> str:
    error = string(run.get("error"))
    return f'<p class="problem" role="alert"><strong>What went wrong:</strong> {escape(error)}</p>' if error else ""


def _facts(folder: RunFolder) -> list[tuple[str, str]]:
    """What stands at the top of the page; facts that are not known are left out."""
    run, metrics = folder.run, folder.metrics
    step, last, wall = (number(run.get(key)) for key in ("step", "max_steps", "wall_s"))
    pace = metrics.pace or (step / wall if step and wall else None)
    facts = [
        ("Step", _step(step, last)),
        ("Speed", f"{pace:.3g} steps/s" if pace else ""),
        ("Time", duration(wall) if wall is not None else ""),
        ("Left", duration((last - step) / pace) if folder.running and step is not None and last and pace and last >= step else ""),
        *_losses(metrics),
        ("Parameters", _count(number(run.get("parameters")))),
        ("Device", string(run.get("device"))),
        ("Started", _date(run.get("started"))),
        ("Updated", _date(run.get("updated"))),
        (
            "Resumed at",
            ", ".join(f"{at:,}" for at in run["resumed"] if isinstance(at, int)) if isinstance(run.get("resumed"), list) else "",
        ),
    ]
    return [(name, text) for name, text in facts if text]


def _step(step: float | None, last: float | None) -> str:
    if step is None:
        return ""
    return f"{step:,.0f} of {last:,.0f} ({step / last:.0%})" if last else f"{step:,.0f}"


def _losses(metrics: Metrics) -> list[tuple[str, str]]:
    train, validation = metrics.series.get("train/loss"), metrics.series.get("val/loss")
    facts = [("Training loss", figure(train.last) if train and train.last is not None else "")]
    if validation and validation.last is not None and validation.best:
        step, best = validation.best
        where = "the best so far" if best == validation.last else f"best {figure(best)} at step {step:,.0f}"
        facts.append(("Validation loss", f"{figure(validation.last)} ({where})"))
    return facts


def figure(value: Any) -> str:
    """A number in the digits that a person reads; other values as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return string(value) or "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """As in "2 h 05 min", "3 min 20 s", "9.5 s"."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _count(value: float | None) -> str:
    """As in "2.46 M"."""
    if value is None:
        return ""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def _date(value: Any) -> str:
    """An ISO date and time to the minute."""
    text = string(value)
    return text[:16].replace("T", " ") + (" UTC" if text.endswith(("Z", "+00:00")) else "") if text else ""


def string(value: Any) -> str:
    """Text as it is, nothing for None, other values as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _definitions(pairs: list[tuple[str, str]]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in pairs)


def _versions(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = run.get("versions")
    return [(str(name), string(version)) for name, version in versions.items()] if isinstance(versions, dict) else []


def _setup(name: str, value: Any) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return (
        f'<details class="document"><summary>{escape(SETUP_TITLES[name])} <span class="file">{escape(name)}</span></summary>'
        f'<pre tabindex="0">{escape(text)}</pre></details>'
    )


def _evaluation(value: Any) -> str:
    if not isinstance(value, dict) or not value:
        return ""
    return (
        f'<section id="evaluation" aria-labelledby="evaluation-title"><h2 id="evaluation-title">Evaluation</h2>{_tables(value)}</section>'
    )


def _tables(value: Mapping[str, Any], title: str = "") -> str:
    """A nested mapping as HTML: plain values as a list of facts, a mapping of like rows as a table, deeper ones below it."""
    if _is_table(value):
        return _table(title, value)
    deeper = {name: item for name, item in value.items() if isinstance(item, dict) and not _is_share(item)}
    facts = [(_words(name), _cell(item)) for name, item in value.items() if name not in deeper]
    heading = f"<h3>{escape(_words(title))}</h3>" if title else ""
    parts = [f'<div class="plain">{heading}<dl class="facts">{_definitions(facts)}</dl></div>'] if facts else []
    return "".join(parts + [_tables(item, f"{title} · {name}" if title else str(name)) for name, item in deeper.items()])


def _is_table(value: Mapping[str, Any]) -> bool:
    rows = value.values()
    return bool(rows) and all(isinstance(row, dict) and not _is_share(row) and all(map(_is_cell, row.values())) for row in rows)


def _is_cell(value: Any) -> bool:
    return not isinstance(value, dict) or _is_share(value)


def _is_share(value: Any) -> bool:
    """A measured share with its interval, as `evaluation` writes it."""
    return isinstance(value, dict) and all(number(value.get(key)) is not None for key in ("share", "low", "high"))


def _cell(value: Any) -> str:
    if _is_share(value):
        return f"{value['share']:.1%} ({100 * value['low']:.0f} to {100 * value['high']:.0f})"
    return ", ".join(map(figure, value)) if isinstance(value, list) else figure(value)


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    head = "".join(f'<th scope="col">{escape(_words(column))}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(_words(name))}</th>{"".join(f"<td>{escape(_cell(row.get(column)))}</td>" for column in columns)}</tr>'
        for name, row in rows.items()
    )
    caption = f"<caption>{escape(_words(title))}</caption>" if title else ""
    frame = f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(_words(title) or "Figures")}">'
    return f"{frame}<table>{caption}<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _words(name: Any) -> str:
    return str(name).replace("_", " ")
