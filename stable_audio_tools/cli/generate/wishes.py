"""The clips that were asked for, as they were asked for: by flags, or by the lines of a prompts file."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.values import positive, whole
from stable_audio_tools.configs.errors import ConfigError, Problem, value_text

TEXTS = ("prompt", "negative_prompt", "name")
OWN = (*TEXTS, "seconds", "seed", "conditions")
NAME = re.compile(r"[^/\\:*?\"<>|\x00-\x1f.][^/\\:*?\"<>|\x00-\x1f]*")  # what every file system takes


@dataclass(frozen=True)
class Wish:
    """One clip; None: not said.

    place: where it was asked for, for messages, such as "line 3"; nothing: by flags.
    name: of its file, without the ending. conditions: all but the prompt, by key.
    """

    place: str = ""
    prompt: str | None = None
    negative_prompt: str | None = None
    seconds: float | None = None
    seed: int | None = None
    name: str | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)


def read_wishes(args: argparse.Namespace) -> list[Wish]:
    """All clips, first those of `--prompt`; one without a prompt, where nothing names any. A line's own settings go before flags.

    Raises:
        ConfigError: the prompts file cannot be read, or some of its lines are wrong.
    """
    shared = dict(key_value(text, "--cond") for text in args.cond)
    wishes = [Wish(prompt=prompt) for prompt in args.prompt]
    if args.prompts_file:
        wishes += read_prompts_file(args.prompts_file)
    flags = {"negative_prompt": args.negative_prompt, "seconds": args.seconds}
    return [_with_flags(wish, shared, flags) for wish in wishes or [Wish()]]


def _with_flags(wish: Wish, conditions: Mapping[str, Any], flags: Mapping[str, Any]) -> Wish:
    unsaid = {name: value for name, value in flags.items() if getattr(wish, name) is None}
    return replace(wish, conditions={**conditions, **wish.conditions}, **unsaid)


def key_value(text: str, flag: str) -> tuple[str, Any]:
    """`key=value`, where the value is JSON if it can be, else text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"expected KEY=VALUE, got {text!r}", source=flag)
    return key.strip(), _json_or_text(value)


def read_prompts_file(path: str) -> list[Wish]:
    """The clips of a file: .jsonl, .csv, or with any other ending a prompt a line.

    Raises:
        ConfigError: it cannot be read, has no clip, or some lines are wrong; all of those are told.
    """
    source = f"--prompts-file {path}"
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot be read: {reason}", source=source) from None
    kind = Path(path).suffix.lower()
    if kind == ".json":
        raise ConfigError([Problem((), "one JSON document", "write one object a line, in a file that ends in .jsonl")], source=source)
    rows = {".jsonl": _json_lines, ".csv": _csv_lines}.get(kind, _text_lines)(text)
    wishes, problems = [], []
    for line, row in rows:
        found = [row] if isinstance(row, str) else [*_row_problems(row)]
        problems += [Problem((), f"line {line}: {message}") for message in found]
        if not found:
            wishes.append(_wish(f"line {line}", row))  # type: ignore[arg-type]  # texts are problems
    problems += _repeated_names(wishes)
    if problems:
        raise ConfigError(problems, source=source)
    if not wishes:
        raise ConfigError("has no prompt; write one a line", source=source)
    return wishes


Rows = Iterator[tuple[int, "dict[str, Any] | str"]]
"""Line number, and what stands there or what is wrong with it."""


def _text_lines(text: str) -> Rows:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, {"prompt": line.strip()}


def _json_lines(text: str) -> Rows:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines, which also cuts at what JSON allows inside of texts
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield number, f"not JSON: {error}"
            continue
        yield number, row if isinstance(row, dict) else f"expected an object with the clip's settings, got {value_text(row)}"


def _csv_lines(text: str) -> Rows:
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in next(reader, [])]
    if unnamed := [place for place, name in enumerate(header, 1) if not name]:
        yield 1, f"column {unnamed[0]} has no name"
        return
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header):
            yield reader.line_num, f"{len(cells)} cells for {len(header)} columns; put quotes around what holds a comma"
            continue
        named = {name: cell.strip() for name, cell in zip(header, cells, strict=False) if cell.strip()}
        yield reader.line_num, {name: cell if name in TEXTS else _json_or_text(cell) for name, cell in named.items()}


def _row_problems(row: Mapping[str, Any]) -> Iterator[str]:
    for name in TEXTS:
        if row.get(name) is not None and (not isinstance(row[name], str) or not row[name].strip()):
            yield f"{name}: expected text, got {value_text(row[name])}"
    if isinstance(row.get("name"), str) and row["name"].strip() and not NAME.fullmatch(row["name"]):
        yield f"name: {value_text(row['name'])} cannot be the name of a file"
    for name, parse in (("seconds", positive), ("seed", whole(0))):
        if row.get(name) is None:
            continue
        try:
            if isinstance(row[name], bool):
                raise argparse.ArgumentTypeError(f"expected a number, got {value_text(row[name])}")
            parse(str(row[name]))
        except argparse.ArgumentTypeError as error:
            yield f"{name}: {error}"
    if not isinstance(row.get("conditions", {}), Mapping):
        yield f"conditions: expected an object, got {value_text(row['conditions'])}"


def _wish(place: str, row: Mapping[str, Any]) -> Wish:
    conditions = {key: value for key, value in row.items() if key not in OWN and value is not None} | dict(row.get("conditions", {}))
    seconds = None if row.get("seconds") is None else float(row["seconds"])
    return Wish(place, row.get("prompt"), row.get("negative_prompt"), seconds, row.get("seed"), row.get("name"), conditions)


def _repeated_names(wishes: list[Wish]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for wish in wishes:
        if wish.name and first.setdefault(wish.name, wish.place) != wish.place:
            yield Problem(
                (), f"{wish.place}: name: {value_text(wish.name)} is that of {first[wish.name]} too", "give each a name of its own"
            )


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
