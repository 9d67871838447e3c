"""What a user is told about bad input: every problem at once, each with its place, value, expectation and fix.

A validator that knows which keys are at fault raises `ConfigError` itself, with paths relative to its own object:

    raise ConfigError([Problem(("config", "strides"), "3 strides for 4 widths", "give one stride per width")])

`configs.parse.validate` puts the object's own path in front of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .source import Path, Places, Span, excerpt, line_column, scan

MISSING: Any = object()
MAX_VALUE = 60  # characters of a value that a message repeats


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    path: keys and indices from the document's root; inside a validator, from the validated object.
    message: what is wrong and what was expected.
    fix: what to do about it, such as a suggestion for a near-miss.
    value: the offending value; left out where there is none.
    on_key: the key is at fault rather than its value, so messages point at the key.
    span: the place in the text as character offsets, where the path does not tell, such as in broken JSON.
    """

    path: Path
    message: str
    fix: str = ""
    value: Any = MISSING
    on_key: bool = False
    span: Span | None = None


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
        spans = _spans(self.problems, text)
        order = sorted(range(len(spans)), key=lambda index: spans[index] or (0, 0))
        self.problems = tuple(self.problems[index] for index in order)
        self._spans = [spans[index] for index in order]
        super().__init__(self.render())

    def render(self) -> str:
        """The message for people: a header where there are several problems, then each with its place and fix."""
        count = len(self.problems)
        header = [f"{self.source}: {count} problems" if self.source else f"{count} problems"] if count > 1 else []
        return "\n".join(header + [self._block(problem, span) for problem, span in zip(self.problems, self._spans, strict=True)])

    def to_dict(self) -> dict[str, Any]:
        """The same for machines, ready for JSON: `source` and `problems` with `path`, `message`, `fix`, `value`, `line`, `column`."""
        return {"source": self.source, "problems": [self._entry(*pair) for pair in zip(self.problems, self._spans, strict=True)]}

    def _block(self, problem: Problem, span: Span | None) -> str:
        place, path = self.source, path_text(problem.path)
        fixes = problem.fix.splitlines()
        if span is not None and self.text is not None:
            line, column = line_column(self.text, span[0])
            code, carets = excerpt(self.text, span)
            head = f"{place}:{line}:{column}" if place else f"line {line}, column {column}"
            shown = [f"{line:>7} | {code}", f"{'':>7} | {carets}", *(f"{'':>7} = {fix}" for fix in fixes)]
            return "\n".join([f"{head}  {path}".rstrip(), *_indented(problem.message), *shown])
        message = problem.message + self._unsaid_value(problem)
        if not path:
            first, *rest = message.splitlines() or [""]
            return "\n".join([f"{place}: {first}" if place else first, *_indented("\n".join(rest)), *(f"  = {fix}" for fix in fixes)])
        return "\n".join([f"{place}: {path}" if place else path, *_indented(message), *(f"  = {fix}" for fix in fixes)])

    def _unsaid_value(self, problem: Problem) -> str:
        """The value, where neither a source line nor the message shows it."""
        if problem.value is MISSING or isinstance(problem.value, (Mapping, list, tuple)):
            return ""
        shown = value_text(problem.value)
        return "" if shown in problem.message else f" (got {shown})"

    def _entry(self, problem: Problem, span: Span | None) -> dict[str, Any]:
        entry: dict[str, Any] = {"path": path_text(problem.path), "message": problem.message, "fix": problem.fix}
        if problem.value is not MISSING:
            entry["value"] = json.loads(json.dumps(problem.value, default=repr))
        if span is not None and self.text is not None:
            entry["line"], entry["column"] = line_column(self.text, span[0])
        return entry


def path_text(path: Path) -> str:
    """A path as people write it: `conditioning.configs[0].type`."""
    text = ""
    for segment in path:
        if isinstance(segment, int):
            text += f"[{segment}]"
        elif segment.replace("_", "").replace("-", "").replace("$", "").isalnum():
            text += f".{segment}" if text else segment
        else:
            text += f"[{json.dumps(segment, ensure_ascii=False)}]"
    return text


def value_text(value: Any) -> str:
    """A value as the JSON a user wrote, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    if not text.isprintable():  # a terminal would obey it
        text = json.dumps(value, default=repr)
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


def _spans(problems: Iterable[Problem], text: str | None) -> list[Span | None]:
    problems = list(problems)
    if text is None or not any(problem.path and problem.span is None for problem in problems):
        return [problem.span for problem in problems]
    places = scan(text)
    return [problem.span or _span(problem, places, text) for problem in problems]


def _span(problem: Problem, places: Places, text: str) -> Span | None:
    """What to point at: the value, its key if that says more, or the innermost object around a place that is not there."""
    path = problem.path
    while path and path not in places.values:
        path = path[:-1]
    if not path:
        return None
    key, value = places.keys.get(path), places.values[path]
    missing, long = path != problem.path, "\n" in text[slice(*value)]
    if key and (problem.on_key or missing or long or text[value[0]] == "{"):
        return key
    return (value[0], value[0] + 1) if long or missing else value


def _indented(message: str) -> list[str]:
    return [f"  {line}" for line in message.splitlines()]
