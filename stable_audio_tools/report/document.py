"""The frame that every page shares: one HTML document with its script, style, data and media, and text as a person reads it.

Nothing from a run folder enters a page unescaped, and a content security policy lets the page run its own script only and
open no connection.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from stable_audio_tools.report.media import Media

SHARED = ("base.js", "curves.js", "demos.js", "ab.js")


def document(title: str, content: str, *, scripts: Iterable[str], data: Mapping[str, Any], media: Iterable[Media]) -> str:
    """The whole page.

    Args:
        content: HTML of the body. scripts: names of the files that follow those all pages share; the last starts the page.
        data: what the script reads.
    """
    script, style = "\n".join(map(asset, (*SHARED, *scripts))), asset("style.css")
    return Template(asset("frame.html")).substitute(
        policy=_policy(script, style),
        style=style,
        script=script,
        title=escape(title),
        content=content,
        data=script_json(data),
        media="\n".join(map(_media_element, {item.key: item for item in media}.values())),
    )


def asset(name: str) -> str:
    return resources.files("stable_audio_tools.report").joinpath(name).read_text(encoding="utf-8")


def replace_file(path: Path, text: str) -> Path:
    """Write beside `path` and move over it, so that a reader never sees half a page."""
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        # A lone surrogate, from a "\ud800" in some JSON file, has no UTF-8 form.
        partial.write_text(text, encoding="utf-8", errors="replace", newline="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


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


def _media_element(media: Media) -> str:
    """A data block: the browser keeps it as text until the page's script asks for it."""
    return f'<script type="text/plain" id="media-{media.key}" data-mime="{media.mime}">{media.base64}</script>'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """The pairs of a description list."""
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in pairs)


def table(title: str, columns: Iterable[str], rows: Iterable[tuple[str, Iterable[str]]]) -> str:
    """A table that scrolls by itself where it is wide.

    Args:
        columns: names, as text. rows: a name, as text, and cells, as HTML.
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = (f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for name, cells in rows)
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    frame = f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(title or "Figures")}">'
    return f"{frame}<table>{caption}<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def string(value: Any) -> str:
    """Text as it is, nothing for None, other values as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def words(name: Any) -> str:
    return str(name).replace("_", " ")


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


def scaled(value: float | None, *, base: int = 1000, unit: str = "") -> str:
    """As in "2.46 M" or, with base 1024 and unit "B", "116 MiB"; nothing for None."""
    if value is None:
        return ""
    size, prefixes = float(value), ["", *("kMGTP" if base == 1000 else ("Ki", "Mi", "Gi", "Ti", "Pi"))]
    while abs(size) >= base and len(prefixes) > 1:
        size /= base
        del prefixes[0]
    return f"{size:.3g} {prefixes[0]}{unit}".strip() if abs(size) < 1000 else f"{size:.0f} {prefixes[0]}{unit}".strip()
