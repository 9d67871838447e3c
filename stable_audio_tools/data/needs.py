"""Do the items of a data set have the metadata that a model's conditioners read? Told before training, with counts and names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stable_audio_tools.audio.io import shown
from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.configs.suggest import did_you_mean
from stable_audio_tools.data.types import ItemKey, fetch

NAMED = 3  # files that a message names
SOURCES = "metadata come from .json beside the files, a metadata.csv, path_pattern and file_tags"


@dataclass(frozen=True)
class Need:
    """What one conditioner reads, or another reader.

    keys: of the metadata; the first that is there counts. kind: what it accepts. reader: what reads it, where that is no conditioner,
    and fix: what else than other metadata would help.
    """

    name: str
    keys: tuple[str, ...]
    kind: Literal["text", "a number", "a whole number", "anything"] = "anything"
    reader: str = ""
    fix: str = ""

    def value(self, metadata: Mapping[str, Any]) -> Any:
        """What it reads of an item, as conditioners do; None: nothing."""
        value = next((metadata[key] for key in self.keys if metadata.get(key) is not None), None)
        return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value

    def accepts(self, value: Any) -> bool:
        return ACCEPTED[self.kind](value)


def _is_number(value: Any) -> bool:
    """A finite number; tensors are left to the conditioner."""
    if not isinstance(value, int | float):
        return hasattr(value, "__float__")
    return not isinstance(value, bool) and math.isfinite(value)


ACCEPTED: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "a number": _is_number,
    "a whole number": lambda value: _is_number(value) and (not isinstance(value, float) or value.is_integer()),
    "anything": lambda value: True,
}


@dataclass
class _Lack:
    """The items that a need is not met by: how many have nothing and something else, and the first of both."""

    nothing: int = 0
    other: int = 0
    nameless: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)


def check_needs(dataset: Any, needs: Sequence[Need], *, run_code: bool = True) -> None:
    """Look at the metadata of all items, without reading audio.

    Args:
        dataset: one that has `stored_metadata(run_code)`, which gives names and metadata of items, and `always`, the keys that all
            of them have; of any other, the first item is made.
        run_code: where a metadata module adds keys, run it on a few items; otherwise such items are not looked at.

    Raises:
        ConfigError: items lack what a conditioner reads, or have it as another kind of value.
    """
    always: frozenset[str] = getattr(dataset, "always", frozenset())
    open_needs = [need for need in needs if need.keys[0] not in always]
    if not open_needs:
        return
    lacks = {need.name: _Lack() for need in open_needs}
    known: set[str] = set()
    total = 0
    for total, (name, metadata) in enumerate(_metadata(dataset, run_code), 1):  # noqa: B007
        known |= metadata.keys()
        for need in open_needs:
            _note(lacks[need.name], need, name, metadata, always)
    problems = [problem for need in open_needs for problem in _problems(need, lacks[need.name], total, known | always)]
    if problems:
        raise ConfigError(problems, "dataset")


def _metadata(dataset: Any, run_code: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if hasattr(dataset, "stored_metadata"):
        yield from dataset.stored_metadata(run_code=run_code)
    else:
        sample = fetch(dataset, [ItemKey(0, 0, 0)])[0]
        yield str(sample.metadata.get("path", "item 0")), sample.metadata


def _note(lack: _Lack, need: Need, name: str, metadata: Mapping[str, Any], always: frozenset[str]) -> None:
    value = need.value(metadata)
    if value is None and not always.intersection(need.keys):
        lack.nothing += 1
        if len(lack.nameless) < NAMED:
            lack.nameless.append(shown(name))
    elif value is not None and not need.accepts(value):
        lack.other += 1
        if len(lack.misfits) < NAMED:
            lack.misfits.append(f"{shown(name)} has {value_text(value)}")


def _problems(need: Need, lack: _Lack, total: int, known: set[str]) -> Iterator[Problem]:
    keys, reader = " or ".join(map(value_text, need.keys)), need.reader or f"the conditioner {value_text(need.name)}"
    if lack.nothing:
        near = did_you_mean(need.keys[0], sorted(known)) if lack.nothing == total else ""
        message = f"{lack.nothing} of {total} items have no {keys}, which {reader} reads: {_first(lack.nameless, lack.nothing)}"
        other = need.fix or f"name another key in the model's conditioning.default_keys.{need.name}"
        yield Problem((), message, "\n".join(line for line in (near, f"{SOURCES}; or {other}") if line))
    if lack.other:
        message = f"{lack.other} of {total} items have no {need.kind.removeprefix('a ')} as {keys}, which {reader} needs"
        yield Problem((), f"{message}: {_first(lack.misfits, lack.other)}", "correct these values")


def _first(names: Sequence[str], count: int) -> str:
    return ", ".join(names) + (" and others" if count > len(names) else "")
