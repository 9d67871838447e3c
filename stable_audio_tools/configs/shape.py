"""What the config classes allow at each place of a document, found by walking class and data together.

Validation itself is pydantic's. This is for messages: which keys are known here, which choices, which type in plain words.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from .base import Family, tags
from .source import Path

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
    dict: "an object",
    list: "a list",
    tuple: "a list",
}
PLURALS = {bool: "true or false", int: "whole numbers", float: "numbers", str: "texts in quotes", dict: "objects"}
NOTHING: Any = object()


@dataclass(frozen=True)
class Place:
    """One place of a document.

    options: the annotations that may stand here, without None.
    value: what stands here; NOTHING where the key is absent.
    family: the component family that stands here, if one does.
    tag_key: the key that tells the options apart, if one does.
    field: the declaration of the key that leads here.
    """

    options: tuple[Any, ...]
    value: Any = NOTHING
    family: Family | None = None
    tag_key: str | None = None
    field: FieldInfo | None = None

    @property
    def is_union(self) -> bool:
        """Pydantic puts one tag, which is no key of the document, into the path behind such a place."""
        return len(self.options) > 1

    @property
    def model(self) -> type[BaseModel] | None:
        """The config class that describes this object, as far as its tag tells."""
        if self.family:
            return _tagged(tuple(self.family), self.family.key, self.value)
        models = tuple(option for option in self.options if _is_model(option))
        if self.tag_key and len(models) > 1:
            return _tagged(models, self.tag_key, self.value)
        return models[0] if models else None

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a `Literal`."""
        return tuple(choice for option in self.options if typing.get_origin(option) is Literal for choice in typing.get_args(option))

    @property
    def fields(self) -> dict[str, FieldInfo]:
        """The keys that this object may have, as they are spelled in JSON."""
        model = self.model
        return {field.alias or name: field for name, field in model.model_fields.items()} if model else {}

    def option(self, tag: str) -> Place:
        """This place with the option that pydantic's tag names."""
        models = tuple(option for option in self.options if _is_model(option))
        named = [m for m in models if tag.removesuffix("]").endswith(m.__name__) or (self.tag_key and tag in tags(m, self.tag_key))]
        name = tag.split("[")[0].removeprefix("constrained-")
        kinds = [option for option in self.options if not _is_model(option) and _label(option) == name]
        chosen = (named or kinds or [None])[0]
        return Place((chosen,) if chosen else (), self.value, field=self.field)

    def child(self, segment: str | int) -> Place:
        """The place that one key or index leads to."""
        value = _item(self.value, segment)
        if segment in self.fields:
            field = self.fields[str(segment)]
            return place_of(field.annotation, value, field, tuple(field.metadata))
        for option in self.options:
            arguments = typing.get_args(option)
            if _kind(option) is tuple and isinstance(segment, int) and arguments:
                inside = arguments[0] if Ellipsis in arguments else arguments[min(segment, len(arguments) - 1)]
                return place_of(inside, value)
            if _kind(option) in (dict, list) and arguments:
                return place_of(arguments[-1], value)
        return Place((), value)

    def objects(self, path: Path = ()) -> Iterator[tuple[Path, Place]]:
        """Every object of the document from here down that a config class describes, absent optional ones included."""
        if self.model is not None and (isinstance(self.value, Mapping) or self.value is NOTHING):
            yield path, self
        if isinstance(self.value, Mapping):
            for key in dict.fromkeys([*self.value, *self.fields]):
                child = self.child(key)
                if child.value is not NOTHING or not (child.is_union or child.family):
                    yield from child.objects((*path, key))
        elif isinstance(self.value, (list, tuple)):
            for index in range(len(self.value)):
                yield from self.child(index).objects((*path, index))

    def words(self) -> str:
        """What is expected here, in plain words."""
        if self.family:
            return f'an object with a "{self.family.key}": one of {", ".join(self.family.names)}'
        if self.choices:
            return one_of(self.choices)
        return " or ".join(dict.fromkeys(map(_words, self.options))) or "another type"


def place_of(annotation: Any, value: Any = NOTHING, field: FieldInfo | None = None, metadata: tuple[Any, ...] = ()) -> Place:
    """The place that an annotation, a config class or a `TypeAdapter` describes."""
    if isinstance(annotation, TypeAdapter):
        annotation = annotation._type
    options, notes = _options(annotation)
    notes = (*metadata, *notes, *([field] if field else []))
    family = next((note for note in notes if isinstance(note, Family)), None)
    tag_key = next((note.discriminator for note in notes if isinstance(note, FieldInfo) and isinstance(note.discriminator, str)), None)
    return Place(options, value, family, tag_key, field)


def walk(root: Place, loc: Path) -> Iterator[tuple[str | int | None, Place]]:
    """Follow pydantic's `loc`: each step's segment, None for a union's tag, and the place it leads to."""
    place = root
    for segment in loc:
        if place.is_union and not place.family:
            place = place.option(str(segment))
            yield None, place
        else:
            place = place.child(segment)
            yield segment, place


def one_of(choices: tuple[Any, ...]) -> str:
    """Choices as they are written in JSON."""
    written = [json.dumps(choice) for choice in choices]
    return written[0] if len(written) == 1 else f"one of {', '.join(written)}"


def _options(annotation: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The members of an annotation without None, and its metadata."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        inner, *notes = typing.get_args(annotation)
        options, more = _options(inner)
        return options, (*notes, *more)
    if origin in (typing.Union, types.UnionType):
        members = [_options(member) for member in typing.get_args(annotation) if member is not type(None)]
        options = tuple(option for found, _ in members for option in found)
        return options, members[0][1] if len(members) == 1 else ()
    return (annotation,), ()


def _tagged(models: tuple[type[BaseModel], ...], key: str, value: Any) -> type[BaseModel] | None:
    tag = value.get(key, NOTHING) if isinstance(value, Mapping) else NOTHING
    fits = [m for m in models if (m.model_fields[key].default == tag if tag is NOTHING else tag in tags(m, key))]
    if not fits and tag is NOTHING and len(models) == 1:
        return models[0]
    return fits[0] if fits else None


def _item(value: Any, segment: str | int) -> Any:
    if isinstance(value, Mapping):
        return value.get(segment, NOTHING)
    if isinstance(value, (list, tuple)) and isinstance(segment, int) and segment < len(value):
        return value[segment]
    return NOTHING


def _is_model(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)


def _kind(option: Any) -> type:
    """`tuple` for `tuple[int, ...]`, `dict` for any mapping, the class itself for the rest."""
    kind = typing.get_origin(option) or option
    if isinstance(kind, type):
        return dict if issubclass(kind, Mapping) else kind
    return object


def _label(option: Any) -> str:
    """What pydantic calls an option in a path, up to the bracket."""
    return "literal" if typing.get_origin(option) is Literal else _kind(option).__name__


def _words(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return one_of(typing.get_args(option))
    kind, arguments = _kind(option), typing.get_args(option)
    if _is_model(option):
        return "an object"
    if kind in (tuple, list) and arguments:
        items, _ = _options(arguments[0])
        plural = "objects" if any(map(_is_model, items)) else PLURALS.get(_kind(items[0]), "values") if len(items) == 1 else "values"
        return f"a list of {plural}" if kind is list or Ellipsis in arguments else f"a list of {len(arguments)} {plural}"
    return WORDS.get(kind, "another type")
