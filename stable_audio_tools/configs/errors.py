"""What a user is told about bad input: every problem at once, each with its place, value, expectation and fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MISSING: Any = object()


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    path: keys and indices from the document's root.
    message: what is wrong and what was expected.
    fix: what to do about it, such as a suggestion for a near-miss.
    value: the offending value; left out where there is none.
    """

    path: tuple[str | int, ...]
    message: str
    fix: str = ""
    value: Any = MISSING


class ConfigError(ValueError):
    """Bad input of any kind: a config, a flag, a file, a checkpoint. The command line turns it into exit status 2.

    Args:
        problems: all that was found, or one message.
        source: what is at fault, usually a file name.
        text: the document's text, so that places can be shown by line and column.
    """

    def __init__(self, problems: Iterable[Problem] | str, source: str = "", text: str | None = None):
        self.problems = (Problem((), problems),) if isinstance(problems, str) else tuple(problems)
        self.source, self.text = source, text
        super().__init__(self.render())

    def render(self) -> str:
        lines = []
        for problem in self.problems:
            place = ".".join(map(str, problem.path))
            lines.append(": ".join(part for part in (self.source, place, problem.message) if part))
            if problem.fix:
                lines.append(f"  = {problem.fix}")
        return "\n".join(lines)
