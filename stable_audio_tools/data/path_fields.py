"""Metadata from where a file lies: `{artist}/{album}/{title}` read off its path.

A pattern stands for the whole path relative to the dataset's root, with "/", without the extension. `{name}` and `*` stand
for anything within one folder or file name, as short as the rest allows, and `**` for any number of folders.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache

from stable_audio_tools.data.captions import Metadata, captioned, number_or_text

FIXED = ("path", "relpath", "dataset_id", "sample_rate", "timestamps", "seconds_start", "seconds_total", "padding_mask")
"""Metadata that every item of audio has, and nothing else can set."""

TEXTS = ("prompt", "caption", "text")  # never turned into numbers
TOKEN = re.compile(r"\{([^{}/]*)\}|(\*\*/)|(\*)|([{}])")


def path_fields(pattern: str, relpath: str) -> Metadata | None:
    """What `pattern` finds in a relative path; None: it does not match.

    Raises:
        ValueError: the pattern itself is wrong.
    """
    names, expression = _compiled(pattern)
    match = expression.fullmatch(os.path.splitext(relpath)[0])
    if match is None:
        return None
    texts = {name: text.strip() for name, text in zip(names, match.groups(), strict=True)}
    return captioned({name: text if name in TEXTS else number_or_text(text) for name, text in texts.items() if text})


@lru_cache
def _compiled(pattern: str) -> tuple[tuple[str, ...], re.Pattern[str]]:
    """The names of the fields, and an expression with one group for each."""
    names: list[str] = []
    expression, end = "", 0
    for token in TOKEN.finditer(pattern):
        name, folders, anything, brace = token.groups()
        expression += re.escape(pattern[end : token.start()])
        end = token.end()
        if brace:
            raise ValueError(f"a single {brace!r} at character {token.start() + 1}; a field is written {{name}}")
        if name is None:
            expression += "(?:[^/]*/)*" if folders else "[^/]*" if anything else ""
            continue
        if not name.isidentifier() or name in names or name in FIXED:
            reason = "stands here twice" if name in names else "is set by the dataset itself" if name in FIXED else "is no name"
            raise ValueError(f"the field {{{name}}} {reason}")
        names.append(name)
        expression += "([^/]+?)"
    if not names:
        raise ValueError("it names no field, such as {title}")
    return tuple(names), re.compile(expression + re.escape(pattern[end:]))
