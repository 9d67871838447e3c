"""Where things stand in a JSON text: the span of every key and value, by path, so that messages can point at them.

Spans are half-open ranges of character offsets; `line_column` turns an offset into what editors show. The text has been
through `json.loads` already, so the scan only has to find places, not faults.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

Path = tuple[str | int, ...]
Span = tuple[int, int]

TOKEN = re.compile(r'[ \t\r\n]*("(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s,\]}:]+)')
CONSTANTS = frozenset({"NaN", "Infinity", "-Infinity"})  # Python's json reads them, JSON does not have them
MAX_WIDTH = 100  # columns of a source line that are shown; minified JSON is one line


@dataclass
class Places:
    """What a scan found.

    keys, values: spans by path; the root's path is ().
    repeated: spans of keys that their object has already, by path.
    constants: spans of NaN and Infinity, by path.
    """

    keys: dict[Path, Span] = field(default_factory=dict)
    values: dict[Path, Span] = field(default_factory=dict)
    repeated: list[tuple[Path, Span]] = field(default_factory=list)
    constants: list[tuple[Path, Span]] = field(default_factory=list)


def scan(text: str) -> Places:
    """Find every key and value of a valid JSON text (NaN, Infinity and repeated keys are let through and listed)."""
    places = Places()
    _scan_value(TOKEN.finditer(text), None, (), places)
    return places


def _scan_value(tokens: Iterator[re.Match[str]], token: re.Match[str] | None, path: Path, places: Places) -> None:
    token = token or next(tokens)
    start, end = token.span(1)
    opening = token[1]
    if opening == "{":
        end = _scan_object(tokens, path, places)
    elif opening == "[":
        end = _scan_array(tokens, path, places)
    elif opening in CONSTANTS:
        places.constants.append((path, (start, end)))
    places.values[path] = (start, end)


def _scan_object(tokens: Iterator[re.Match[str]], path: Path, places: Places) -> int:
    """Scan up to the closing brace; returns the offset after it."""
    for token in tokens:
        if token[1] == "}":
            return token.end(1)
        if token[1] == ",":
            continue
        key = (*path, json.loads(token[1]))
        if key in places.keys:
            places.repeated.append((key, token.span(1)))
        places.keys[key] = token.span(1)
        next(tokens)  # the colon
        _scan_value(tokens, None, key, places)
    raise AssertionError("the text is valid JSON")


def _scan_array(tokens: Iterator[re.Match[str]], path: Path, places: Places) -> int:
    """Scan up to the closing bracket; returns the offset after it."""
    index = 0
    for token in tokens:
        if token[1] == "]":
            return token.end(1)
        if token[1] == ",":
            continue
        _scan_value(tokens, token, (*path, index), places)
        index += 1
    raise AssertionError("the text is valid JSON")


def line_column(text: str, offset: int) -> tuple[int, int]:
    """The line and column of an offset, both from 1."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def excerpt(text: str, span: Span) -> tuple[str, str]:
    """The source line that a span starts in, and a line of carets to print below it.

    Long lines are cut around the span; control characters, which could move a terminal's cursor, become blanks.
    """
    start = text.rfind("\n", 0, span[0]) + 1
    end = text.find("\n", span[0])
    end = len(text) if end < 0 else end
    stop = min(max(span[1], span[0] + 1), max(end, span[0] + 1))
    left = start if end - start <= MAX_WIDTH else max(start, span[0] - MAX_WIDTH // 3)
    right = min(end, left + MAX_WIDTH)
    line = "".join(char if char.isprintable() else " " for char in text[left:right])
    before = sum(map(_columns, line[: span[0] - left]))
    marked = sum(map(_columns, line[span[0] - left : stop - left])) or 1
    cut_left, cut_right = "…" if left > start else "", "…" if right < end else ""
    return cut_left + line.rstrip() + cut_right, " " * (before + len(cut_left)) + "^" * marked


def _columns(char: str) -> int:
    """How many columns a terminal gives to a character."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
