"""From a JSON file or a plain value to a validated config: read, check, and say everything that is wrong at once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from .errors import ConfigError, Problem, value_text
from .explain import explain
from .shape import place_of
from .source import scan

# The start of what Python's json says, the same in plain words, and the usual fix.
SYNTAX = (
    ("Expecting property name", "a key in double quotes should stand here", ""),
    ("Expecting value", "a value should stand here", ""),
    (
        "Expecting ',' delimiter",
        "a comma or a closing bracket should stand here",
        "add a comma, or close the bracket or quote",
    ),
    ("Expecting ':' delimiter", "a colon should stand here", ""),
    ("Illegal trailing comma", "a comma with nothing behind it", "remove the comma"),
    ("Unterminated string", "the text has no closing quote", 'add "'),
    ("Invalid control character", "a line break or tab inside quotes", r"write \n or \t"),
    ("Invalid \\escape", "a backslash that means nothing", r"write two: \\"),
    ("Extra data", "something follows the end of the document", "a file holds one object"),
)
HABITS = {
    "'": 'use double quotes: "',
    "#": "JSON has no comments: remove it",
    "//": "JSON has no comments: remove it",
    "/*": "JSON has no comments: remove it",
    "True": "write true",
    "False": "write false",
    "None": "write null",
}


def read_json(path: str | os.PathLike[str]) -> tuple[Any, str]:
    """Read a JSON file; returns the data and the text, which `validate` needs to show places.

    Raises:
        ConfigError: the file cannot be read, is not text, or is not JSON; repeated keys and NaN are not JSON.
    """
    source, text = os.fspath(path), _read_text(Path(path))
    try:
        data, places = json.loads(text), scan(text)
    except json.JSONDecodeError as error:
        raise ConfigError([_syntax_problem(error, text)], source, text) from None
    except RecursionError:
        raise ConfigError("not a config: objects and lists are nested too deeply", source) from None
    except ValueError:  # Python refuses integers of thousands of digits
        raise ConfigError("not a config: a number has thousands of digits", source) from None
    problems = [Problem(path, f"the key {value_text(path[-1])} stands here twice", "keep one", span=span) for path, span in places.repeated]
    for where, span in places.constants:
        problems.append(Problem(where, f"{text[slice(*span)]} is not a number in JSON", "write a finite number", span=span))
    if problems:
        raise ConfigError(problems, source, text)
    return data, text


def validate(kind: Any, data: Any, source: str, text: str | None = None) -> Any:
    """Check `data` and return the config object it describes.

    Args:
        kind: a `StrictModel` class, a `TypeAdapter`, or an annotation such as a union.
        data: parsed JSON, or an already validated object; a "$schema" at its top is for editors and passed over.
        source: what the data is called in messages, usually the file name.
        text: the JSON text, so that messages can point at lines.

    Raises:
        ConfigError: every problem of `data`.
    """
    if isinstance(data, Mapping):
        data = {key: value for key, value in data.items() if key != "$schema"}  # for editors
    try:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind.model_validate(data)
        adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
        return adapter.validate_python(data)
    except ValidationError as error:
        raise ConfigError(explain(error, place_of(kind, data)), source, text) from None


def _read_text(path: Path) -> str:
    source = str(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError("no such file", source) from None
    except IsADirectoryError:
        raise ConfigError("is a folder, not a JSON file", source) from None
    except PermissionError:
        raise ConfigError("no permission to read the file", source) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the file: {getattr(error, 'strerror', None) or error}", source) from None
    try:
        text = raw.decode(json.detect_encoding(raw))
    except UnicodeDecodeError as error:
        raise ConfigError(f"not a JSON text in UTF-8: byte {error.start} is no text", source) from None
    if not text.strip():
        raise ConfigError("the file is empty", source)
    return text


def _syntax_problem(error: json.JSONDecodeError, text: str) -> Problem:
    """Where the JSON breaks off, with the fix for what people most often leave in."""
    end = len(text.rstrip())
    if error.pos >= end:
        return Problem((), "not valid JSON: the file ends too early", "close every { and [", span=(end - 1, end))
    reason, fix = next(((reason, fix) for start, reason, fix in SYNTAX if error.msg.startswith(start)), (error.msg, ""))
    rest = text[error.pos :]
    if rest[0] in "}]" and text[: error.pos].rstrip().endswith(","):
        fix = "remove the comma before it"
    else:
        fix = next((hint for start, hint in HABITS.items() if rest.startswith(start)), fix)
    return Problem((), f"not valid JSON: {reason}", fix, span=(error.pos, error.pos + 1))
