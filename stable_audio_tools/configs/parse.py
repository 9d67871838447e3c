"""From a JSON file or a plain value to a validated config: read, check, and say everything that is wrong at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from .errors import ConfigError, Problem


def read_json(path: str | Path) -> tuple[Any, str]:
    """Read a JSON file; returns the data and the text, which `validate` needs to show places.

    Raises:
        ConfigError: the file cannot be read, or is not JSON.
    """
    source = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        return json.loads(text), text
    except OSError as error:
        raise ConfigError(f"cannot read the file: {error.strerror}", source) from None
    except ValueError as error:
        raise ConfigError(f"not valid JSON: {error}", source) from None


def validate(kind: Any, data: Any, source: str, text: str | None = None) -> Any:
    """Check `data` and return the config object it describes.

    Args:
        kind: a `StrictModel` class, a `TypeAdapter`, or an annotation such as a union.
        data: parsed JSON.
        source: what the data is called in messages, usually the file name.
        text: the JSON text, so that messages can point at lines.

    Raises:
        ConfigError: every problem of `data`.
    """
    try:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind.model_validate(data)
        adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
        return adapter.validate_python(data)
    except ValidationError as error:
        problems = [Problem(tuple(item["loc"]), item["msg"]) for item in error.errors(include_url=False)]
        raise ConfigError(problems, source, text) from None
