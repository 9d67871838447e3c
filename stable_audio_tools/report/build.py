"""Builds `index.html`: reads the run folder, chooses what to embed, fills the template, replaces the page in one move."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stable_audio_tools.report import render
from stable_audio_tools.report.demos import Clip, Group, group_rows
from stable_audio_tools.report.media import EMBED_BUDGET, RUNNING_BUDGET, WHOLE, Media, MediaCache, choose_embedded
from stable_audio_tools.report.metrics import charts
from stable_audio_tools.report.run_folder import RunFolder, read_run_folder

_CACHE = MediaCache()


def build_report(run_dir: Path) -> Path:
    """Write `<run_dir>/index.html` from what the folder holds now; cheap enough to be called throughout a run.

    A run in progress is fine: what is missing or half-written is left out and named on the page. The old page stays in
    place until the new one is complete.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: there is no folder `run_dir`.
        OSError: the page cannot be written.
    """
    folder = read_run_folder(Path(run_dir))
    embedded = choose_embedded(folder.demos, _CACHE, RUNNING_BUDGET if folder.running else EMBED_BUDGET)
    _CACHE.keep_only(embedded)
    media = {path: found for path in embedded if (found := _CACHE.get(path))}
    data = {
        "status": render.status(folder.run),
        "updated": render.string(folder.run.get("updated")),
        "resumed": [step for step in _list(folder.run.get("resumed")) if isinstance(step, int)],
        "last_step": max((series.steps[-1] for series in folder.metrics.series.values()), default=0),
        "charts": charts(folder.metrics),
        "demos": _demos(folder, media),
    }
    return _replace(folder.path / "index.html", render.page(folder, data, media.values()))


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _demos(folder: RunFolder, media: dict[Path, Media]) -> dict[str, Any]:
    """The demos as the page's script reads them: `steps`, and groups of rows with one clip or None for each step."""
    groups = group_rows(folder.demos)
    return {
        "steps": [demo.step for demo in folder.demos],
        "embedded": [any(clip.audio in media for clip in demo.clips) for demo in folder.demos],
        "groups": [{"title": group.title, "rows": _rows(group, media)} for group in groups],
    }


def _rows(group: Group, media: dict[Path, Media]) -> list[dict[str, Any]]:
    return [
        {
            "kind": row.first.kind,
            "title": row.first.title,
            "settings": row.first.settings,
            "clips": [_clip(clip, media) if clip else None for clip in row.clips],
        }
        for row in group.rows
    ]


def _clip(clip: Clip, media: dict[Path, Media]) -> dict[str, Any]:
    """`sound` and `picture` name embedded media by key, or else the file by URL; `file` is the exact file's URL."""
    return {
        "sound": _source(clip.audio, media),
        "picture": _source(clip.image, media) | {"plot": _CACHE.plot_area(clip.image) if clip.image else WHOLE},
        "latents": _source(clip.latents, media),
        "file": _url(clip.audio) if clip.audio else None,
        "lossy": clip.audio in media and media[clip.audio].lossy,
        "info": clip.info,
    }


def _source(path: Path | None, media: dict[Path, Media]) -> dict[str, Any]:
    if path is None:
        return {}
    return {"media": media[path].key} if path in media else {"url": _url(path)}


def _url(path: Path) -> str:
    """Address of a demo's file, relative to the page."""
    return quote(f"demos/{path.parent.name}/{path.name}")


def _replace(path: Path, text: str) -> Path:
    """Write beside `path` and move over it, so that a reader never sees half a page."""
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        # A lone surrogate, from a "\ud800" in some JSON file, has no UTF-8 form.
        partial.write_text(text, encoding="utf-8", errors="replace", newline="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
