"""The prompt of a clip at one visit: one of its captions, or a template filled with its metadata, then what varies of it.

Everything drawn is a function of the names that the data set gives, which are the seed, the visit and the item.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from string import Formatter
from typing import Any, NamedTuple, Self

from pydantic import Field, PositiveFloat, model_validator

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.data.draws import below, fraction, permutation

SEPARATOR = re.compile(r"\s*[,;|]\s*|\.\s+|\s+[-–—]\s+|\s*\n\s*")  # between the parts of a template

Names = tuple[int | str, ...]


class PromptOptions(StrictModel):
    """How prompts are made of metadata, and varied."""

    templates: tuple[str, ...] = Field(
        (),
        description='texts such as "{genre} music, {bpm} bpm" to make prompts of, one drawn for each visit; parts whose metadata an '
        "item lacks are left out; default: captions are the prompts",
    )
    template_weights: tuple[PositiveFloat, ...] | None = Field(None, description="how often each template is drawn; default: equally often")
    shuffle_tags: bool = Field(False, description="what stands between the prompt's commas, in a new order at every visit")
    tag_dropout: float = Field(0.0, ge=0, lt=1, description="probability that one of these is left out; one always stays")
    keep_tags: int = Field(0, ge=0, description="so many at the start are neither moved nor left out")
    dropout: float = Field(
        0.0, ge=0, le=1, description="probability of an empty prompt, all else kept; cfg_dropout_prob of a training drops all conditions"
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if problems := [*self._template_problems(), *self._idle()]:
            raise ConfigError(problems)
        return self

    def _template_problems(self) -> Iterator[Problem]:
        for index, template in enumerate(self.templates):
            try:
                _pieces(template)
            except ValueError as error:
                fix = "write a field as {name}, and a brace of the text twice"
                yield Problem(("templates", index), f"not a template: {error}", fix, template)

    def _idle(self) -> Iterator[Problem]:
        weights = self.template_weights
        if weights is not None and len(weights) != len(self.templates):
            message = f"{len(weights)} weights for {len(self.templates)} templates"
            yield Problem(("template_weights",), message, "give one weight per template", on_key=True)
        if self.keep_tags and not (self.shuffle_tags or self.tag_dropout):
            fix = "set shuffle_tags or tag_dropout, or remove it"
            yield Problem(("keep_tags",), "has no effect without shuffle_tags and tag_dropout", fix, on_key=True)

    def fields(self) -> Iterator[tuple[int, str]]:
        """Metadata that templates name, with the template's number."""
        for index, template in enumerate(self.templates):
            for piece in _pieces(template):
                yield from ((index, name) for name in piece.fields)

    def says_something(self, metadata: Mapping[str, Any]) -> bool:
        """Whether an item with this metadata has a prompt."""
        if self.templates:
            return any(_fits(template, metadata) for template in self.templates)
        return bool(metadata.get("prompt"))

    def drawn(self, metadata: Mapping[str, Any], *names: int | str) -> dict[str, Any]:
        """The metadata with the `prompt` of one visit, unless there is none and no template to make one of.

        Args:
            metadata: of the item; `prompts` in it are captions to choose from.
            names: of the visit, which alone decide on everything drawn.
        """
        captions = metadata.get("prompts") or ([metadata["prompt"]] if "prompt" in metadata else [])
        chosen = {"prompt": captions[below(len(captions), *names, "caption")]} if captions else {}
        described = {**metadata, **chosen}
        if self.templates:
            described["prompt"] = self._filled(described, names)
        if "prompt" in described:
            described["prompt"] = self._varied(described["prompt"], names)
        return described

    def _filled(self, metadata: Mapping[str, Any], names: Names) -> str:
        """One of the templates that have something to say about the item; nothing if none has."""
        weights = self.template_weights or (1.0,) * len(self.templates)
        fitting = [pair for pair in zip(self.templates, weights, strict=True) if _fits(pair[0], metadata)]
        place = fraction(*names, "template") * sum(weight for _, weight in fitting)
        for template, weight in fitting:
            place -= weight
            if place < 0:
                return fill(template, metadata)
        return fill(fitting[-1][0], metadata) if fitting else ""  # rounding may leave a rest

    def _varied(self, prompt: str, names: Names) -> str:
        if self.dropout and fraction(*names, "prompt dropout") < self.dropout:
            return ""
        if not (self.shuffle_tags or self.tag_dropout):
            return prompt
        tags = [tag for part in prompt.split(",") if (tag := part.strip())]
        kept, others = tags[: self.keep_tags], tags[self.keep_tags :]
        if self.tag_dropout:
            others = self._thinned(others, names, at_least=0 if kept else 1)
        if self.shuffle_tags:
            others = [others[place] for place in permutation(len(others), *names, "tags").tolist()]
        return ", ".join(kept + others)

    def _thinned(self, tags: Sequence[str], names: Names, at_least: int) -> list[str]:
        draws = [fraction(*names, "tag", place) for place in range(len(tags))]
        safe = sorted(draws, reverse=True)[:at_least]
        return [tag for tag, draw in zip(tags, draws, strict=True) if draw >= self.tag_dropout or draw in safe]


def fill(template: str, metadata: Mapping[str, Any]) -> str:
    """A template with the metadata in place of its fields; parts that lack one are left out, with what stands before them.

    Parts end at commas, semicolons, full stops, dashes between blanks, "|" and line breaks of the template.
    """
    text = ""
    for piece in _pieces(template):
        if all(field_text(name, metadata) for name in piece.fields):
            words = "".join(part if literal else field_text(part, metadata) for literal, part in piece.parts)
            text += (piece.separator if text else "") + words
    return text.strip()


def field_text(name: str, metadata: Mapping[str, Any]) -> str:
    """A metadata value as part of a prompt; "" if there is none. Lists are joined by commas; true is the name of the field.

    Raises:
        ValueError: it is no text, number, boolean or list of these.
    """
    value = metadata.get(name)
    if value is None or value is False:
        return ""
    if value is True:
        return name.replace("_", " ")
    if isinstance(value, float):
        return format(value, ".10g")  # 120.0 as 120
    if isinstance(value, str | int):
        return str(value).strip()
    if isinstance(value, list | tuple):
        return ", ".join(text for part in value if (text := field_text(name, {name: part})))
    raise ValueError(f"{name!r} is {value_text(value)}, which cannot stand in a prompt; use text, numbers or lists of them")


class _Piece(NamedTuple):
    """A part of a template. separator: what stands before it. parts: (is literal, text or name of a field)."""

    separator: str
    parts: tuple[tuple[bool, str], ...]

    @property
    def fields(self) -> list[str]:
        return [part for literal, part in self.parts if not literal]


def _fits(template: str, metadata: Mapping[str, Any]) -> bool:
    """Whether the template says something about the item: one of its fields is known, or it has none."""
    fields = [name for piece in _pieces(template) for name in piece.fields]
    return any(field_text(name, metadata) for name in fields) or not fields


@lru_cache
def _pieces(template: str) -> tuple[_Piece, ...]:
    """Raises ValueError where braces do not match, or hold more than a name."""
    pieces: list[tuple[str, list[tuple[bool, str]]]] = [("", [])]
    for literal, name, form, conversion in Formatter().parse(template):
        end = 0
        for separator in SEPARATOR.finditer(literal):
            pieces[-1][1].append((True, literal[end : separator.start()]))
            pieces.append((separator[0], []))
            end = separator.end()
        pieces[-1][1].append((True, literal[end:]))
        if name is None:
            continue
        if form or conversion or not name or name != name.strip() or set(name) & set(".[]{}"):
            raise ValueError(f"{{{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}}} is not the name of a field")
        pieces[-1][1].append((False, name))
    filled = ((separator, tuple(part for part in parts if part[1])) for separator, parts in pieces)
    return tuple(_Piece(separator, parts) for separator, parts in filled if parts)
