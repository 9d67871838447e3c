"""Demos by prompt and step: reads `demos/step_*/demos.json` and lines up the same prompt across steps."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stable_audio_tools.report.values import number

ORIGINAL = "original"


@dataclass(frozen=True)
class Clip:
    """One entry of a `demos.json`.

    step: the train step it was made at. loudness: LUFS, where the entry says it. audio, image, latents: files inside the step's
    folder, or None where they are missing.
    """

    step: int
    title: str
    kind: str
    group: str
    prompt: str
    settings: tuple[tuple[str, str], ...]
    info: tuple[tuple[str, str], ...]
    audio: Path | None
    image: Path | None
    latents: Path | None
    loudness: float | None = None

    @property
    def identity(self) -> tuple:
        """What stays the same about a clip from step to step."""
        return (self.group, self.kind, self.prompt or self.title, self.settings)


@dataclass(frozen=True)
class DemoStep:
    """The demos made at one step."""

    step: int
    clips: list[Clip]


@dataclass
class Row:
    """One thing to follow through training: `clips[i]` belongs to the i-th demo step, None where it was not made."""

    first: Clip
    clips: list[Clip | None]


@dataclass
class Group:
    """Rows that are heard against each other, originals first."""

    title: str
    rows: list[Row] = field(default_factory=list)


def read_demos(folder: Path, notes: list[str]) -> list[DemoStep]:
    """The demo steps in order. One whose `demos.json` is not readable (yet) leaves a note and is left out."""
    found: dict[int, DemoStep] = {}
    for step, path in sorted(_step_folders(folder)):
        try:
            entries = json.loads((path / "demos.json").read_text(encoding="utf-8"))
            files = _files(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            notes.append(f"demos/{path.name}/demos.json could not be read: {error}")
            continue
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            notes.append(f"demos/{path.name}/demos.json is not a list of demos.")
            continue
        found[step] = DemoStep(step, [_clip(entry, step, path, files) for entry in entries])
    return [demo for demo in found.values() if demo.clips]


def _step_folders(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    matches = [(re.fullmatch(r"step_(\d{1,15})", path.name), path) for path in folder.iterdir() if path.is_dir()]
    return [(int(match[1]), path) for match, path in matches if match]


def _clip(entry: dict[str, Any], step: int, folder: Path, files: set[str]) -> Clip:
    prompt, title = _text(entry.get("prompt")), _text(entry.get("title"))
    info = entry.get("info")
    return Clip(
        step=step,
        title=title,
        kind=_text(entry.get("kind")) or "generated",
        group=_text(entry.get("group")) or prompt or title,
        prompt=prompt,
        settings=tuple((label, _text(entry[key])) for label, key in (("CFG", "cfg_scale"), ("seed", "seed")) if entry.get(key) is not None),
        info=tuple((str(key), _text(value)) for key, value in info.items()) if isinstance(info, dict) else (),
        audio=_file(entry.get("audio"), folder, files),
        image=_file(entry.get("image"), folder, files),
        latents=_file(entry.get("latents"), folder, files),
        loudness=number(entry.get("loudness_lufs")),
    )


def _text(value: Any) -> str:
    """A value as a person reads it: short numbers, no quotes."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _files(folder: Path) -> set[str]:
    """Names of the plain files in `folder`. A clip's sound and picture are among them or missing: neither a path in a
    `demos.json` nor a link leads out of the folder."""
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}


def _file(name: Any, folder: Path, files: set[str]) -> Path | None:
    return folder / name if isinstance(name, str) and name in files else None


def group_rows(steps: list[DemoStep]) -> list[Group]:
    """Line up clips of the same identity across `steps`; groups and rows keep the order of their first appearance."""
    rows: dict[tuple, Row] = {}
    for index, demo in enumerate(steps):
        seen: dict[tuple, int] = {}
        for clip in demo.clips:
            # Two clips of one step may be alike in all that is known of them: the first stays with the first.
            count = seen[clip.identity] = seen.get(clip.identity, 0) + 1
            row = rows.setdefault((clip.identity, count), Row(clip, [None] * len(steps)))
            row.clips[index] = clip
    groups: dict[str, Group] = {}
    for row in rows.values():
        groups.setdefault(row.first.group, Group("")).rows.append(row)
    for group in groups.values():
        group.rows.sort(key=lambda row: row.first.kind != ORIGINAL)
        group.title = _heading(group.rows)
    return list(groups.values())


def _heading(rows: list[Row]) -> str:
    """The prompt where the rows share one, else the group's name."""
    prompts = {row.first.prompt for row in rows} - {""}
    return prompts.pop() if len(prompts) == 1 else rows[0].first.group
