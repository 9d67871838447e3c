"""Captions and metadata of a folder of audio, without code: text beside the files, or one table at the root.

- `clip.txt` beside `clip.wav` is its caption. `clip.json` is an object: `prompt`, `caption` or `text` is the caption, or a
  list of several, which may also be called `prompts` or `captions`; the rest is metadata.
- `metadata.csv` or `metadata.jsonl` at the root names files, relative to it, under `file_name` or `path`; the other columns
  are as in the JSON. Numbers in a CSV become numbers, except in captions. Excel's `;` and tabs are recognised.

What stands beside a file wins over the table, JSON over text. The caption becomes `prompt`; of several, which become
`prompts`, it is the first, until `data.prompts` chooses one for each visit.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stable_audio_tools.audio.io import shown
from stable_audio_tools.configs.errors import ConfigError, Problem

SIDECARS = (".txt", ".json")  # later ones win
TABLES = ("metadata.csv", "metadata.jsonl")  # later ones win
FILE_KEYS = ("file_name", "path")
CAPTION_KEYS = ("prompts", "prompt", "captions", "caption", "text")  # the first that is there is the caption, or holds several
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")

Metadata = dict[str, Any]


class MalformedError(ValueError):
    """What is wrong with one row or sidecar, and in which line of its text."""

    def __init__(self, cause: str, line: int = 1):
        super().__init__(cause)
        self.line = line


@dataclass
class Table:
    """What the tables at the root say.

    entries: metadata by path relative to the root. problems: rows that cannot be used, as "file:line: cause".
    """

    entries: dict[str, Metadata] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_tables(root: Path) -> Table:
    """The tables at the root of a dataset; empty where there are none.

    Raises:
        ConfigError: a table that cannot be read, or does not say which file a row is about.
    """
    table = Table()
    for name in TABLES:
        path = root / name
        if path.is_file():
            _read_table(path, root, table)
    return table


def read_sidecars(audio_path: str, present: Mapping[str, str]) -> tuple[Metadata, list[str]]:
    """Metadata from the files beside an audio file, and what is wrong with them as "file:line: cause".

    Args:
        present: the sidecars that there are, by their path with the extension in lower case.
    """
    stem = os.path.splitext(audio_path)[0]
    metadata: Metadata = {}
    problems = []
    for extension in SIDECARS:
        path = present.get(stem + extension)
        if path is None:
            continue
        try:
            metadata = over(metadata, sidecar_metadata(extension, Path(path).read_bytes()))
        except MalformedError as error:
            problems.append(f"{shown(path)}:{error.line}: {error}")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{shown(path)}: {_unreadable(error)}")
    return metadata, problems


def sidecar_metadata(extension: str, content: bytes) -> Metadata:
    """What a file beside an audio file says, by its extension, one of `SIDECARS`.

    Raises:
        MalformedError: it cannot be used. UnicodeDecodeError: it is no text.
    """
    text = content.decode("utf-8-sig")
    return captioned({"text": text.strip()} if extension == ".txt" else _json_object(text))


def _read_table(path: Path, root: Path, table: Table) -> None:
    seen: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _csv_rows(file, path) if path.suffix == ".csv" else _jsonl_rows(file)
            for line, row in rows:
                try:
                    name, metadata = _entry(row, root)
                    if name in seen:
                        raise MalformedError(f"{name!r} stands in line {seen[name]} already")
                except MalformedError as error:
                    table.problems.append(f"{shown(path)}:{line}: {error}")
                    continue
                seen[name] = line
                table.entries[name] = over(table.entries.get(name, {}), metadata)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(_unreadable(error), shown(path)) from None


def _csv_rows(file: Any, path: Path) -> Iterator[tuple[int, Metadata | str]]:
    """(line, row) pairs; a row that does not fit the header is the text that says so."""
    header_line = file.readline()
    file.seek(0)
    reader = csv.reader(file, delimiter=max(",;\t", key=header_line.count))
    header = [column.strip() for column in next(reader, [])]
    if not set(header) & set(FILE_KEYS):
        columns = ", ".join(header) or "none"
        fix = f"name the column with the files {FILE_KEYS[0]!r}"
        raise ConfigError([Problem((), f"no column says which file a row is about; columns: {columns}", fix)], f"{shown(path)}:1")
    for cells in reader:
        if not any(cells):
            continue
        if len(cells) != len(header):
            yield reader.line_num, f"{len(cells)} cells under {len(header)} columns; text with a comma must stand in double quotes"
            continue
        texts = (*FILE_KEYS, *CAPTION_KEYS)
        row = {key: cell if key in texts else number_or_text(cell) for key, cell in zip(header, cells, strict=True) if cell.strip()}
        yield reader.line_num, row


def _jsonl_rows(file: Any) -> Iterator[tuple[int, Metadata | str]]:
    for line, text in enumerate(file, 1):
        if text.strip():
            try:
                yield line, _json_object(text)
            except MalformedError as error:
                yield line, str(error)


def _entry(row: Metadata | str, root: Path) -> tuple[str, Metadata]:
    """The file a row is about, relative to the root, and its metadata."""
    if isinstance(row, str):
        raise MalformedError(row)
    key = next((key for key in FILE_KEYS if row.get(key)), None)
    if key is None or not isinstance(row[key], str):
        raise MalformedError(f"no {FILE_KEYS[0]!r}: which file is it about?")
    name = os.path.relpath(root / row[key], root).replace(os.sep, "/")
    return name, captioned({other: value for other, value in row.items() if other != key})


def captioned(row: Metadata) -> Metadata:
    """The caption as `prompt`, several as `prompts`, too; empty ones count as none.

    Raises:
        ValueError: it is neither text nor a list of texts.
    """
    key = next((key for key in CAPTION_KEYS if key in row), None)
    if key is None:
        return row
    given = row[key] if isinstance(row[key], list | tuple) else [row[key]]
    if not all(isinstance(text, str) for text in given):
        raise MalformedError(f"{key!r} is no text" if given == [row[key]] else f"{key!r} is no list of texts")
    captions = [stripped for text in given if (stripped := text.strip())]
    rest = {other: value for other, value in row.items() if other not in (key, "prompt", "prompts")}
    return {**({"prompt": captions[0]} if captions else {}), **({"prompts": captions} if len(captions) > 1 else {}), **rest}


def over(weaker: Metadata, stronger: Metadata) -> Metadata:
    """What two sources say; where both do, the stronger: its caption stands for all captions of the weaker."""
    if "prompt" in stronger:
        weaker = {key: value for key, value in weaker.items() if key != "prompts"}
    return weaker | stronger


def _json_object(text: str) -> Metadata:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise MalformedError(f"not valid JSON: {error.msg}", error.lineno) from None
    except (RecursionError, ValueError):
        raise MalformedError("not valid JSON: too deep, or too long a number") from None
    if not isinstance(value, dict):
        raise MalformedError("not an object {...}")
    return value


def number_or_text(text: str) -> Any:
    """What a text says, as a number where it is one: "90" and "-1.5e3" are, "007" is a name."""
    text = text.strip()
    match = NUMBER.fullmatch(text)
    if not match:
        return text
    return float(text) if match[2] or match[3] else int(text)


def _unreadable(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not text in UTF-8: byte {error.start} is no text"
    return getattr(error, "strerror", None) or str(error)
