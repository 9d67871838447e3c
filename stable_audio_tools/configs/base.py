"""The base of every config class: strict, frozen, and open families of components.

A *component* is anything a JSON config can name: its config class holds the keys, and `build(...)` makes the object.
A `Family` is the set of components that may stand in one place of the JSON, told apart by one key. Built-ins are listed
where the family is made; plugins add theirs with `register`, at any time, and validation and JSON Schema follow.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from .errors import ConfigError, Problem


class StrictModel(BaseModel):
    """Unknown keys are errors, nothing is coerced ("1" is no number, 1 is no boolean), instances never change.

    Sequences are tuples, since a frozen model must not hold a list; JSON arrays are accepted for them. Paths are `str`.
    Schemas are built at first use, so importing stays cheap.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _arrays_are_tuples(cls, value: Any) -> Any:
        return {key: _tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def check_order(config: StrictModel, low: str, high: str) -> None:
    """Raises ConfigError unless the number under the key `low` is below the one under `high`; for validators."""
    lower, upper = getattr(config, low), getattr(config, high)
    if lower >= upper:
        key, word = (high, "larger") if high in config.model_fields_set else (low, "smaller")
        message = f"{low} must be below {high}, got {lower} and {upper}"
        raise ConfigError([Problem((key,), message, f"make {key} the {word} one")])


def _tuples(value: Any) -> Any:
    """Nested lists as tuples; mappings inside are left to the models that read them."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


class Family:
    """The component configs that may stand in one place, discriminated by `key`.

    Used as an annotation: `encoder: Annotated[StrictModel, ENCODERS]`.

    Args:
        what: what one member is called in messages, such as "encoder".
        members: config classes; each has a `Literal` field named `key`.
        key: the discriminating JSON key.
    """

    def __init__(self, what: str, *members: type[StrictModel], key: str = "type"):
        self.what, self.key = what, key
        self._members: dict[str, type[StrictModel]] = {}
        self._open: set[type[StrictModel]] = set()
        for member in members:
            self.register(member)

    def register(self, member: type[StrictModel]) -> type[StrictModel]:
        """Add a config class; usable as a decorator.

        Raises:
            ValueError: a name of `member` is taken by another class.
        """
        for name in tags(member, self.key):
            if self._members.get(name, member) is not member:
                raise ValueError(f"{self.what} {name!r} is already registered by {self._members[name].__name__}")
            self._members[name] = member
        return member

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    def __iter__(self) -> Iterator[type[StrictModel]]:
        return iter(dict.fromkeys(self._members.values()))

    def __getitem__(self, name: str) -> type[StrictModel]:
        return self._members[name]

    def select(self, value: Any) -> StrictModel:
        """Validate `value`, a mapping whose `key` names the member, or an already validated member."""
        if isinstance(value, StrictModel) and isinstance(value, tuple(self)):
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("family_not_object", 'expected an object with a "{key}" key', {"key": self.key})
        tag = value.get(self.key, self._default_tag())
        if tag is None:
            raise self._tag_error("family_tag_missing", 'missing key "{key}": name one {what} of {known}', (), value)
        if not isinstance(tag, str) or tag not in self._members:
            raise self._tag_error("family_tag_unknown", 'unknown {what} "{tag}"', (self.key,), tag)
        return self._members[tag].model_validate(value)

    def _default_tag(self) -> str | None:
        """The only member's name may be left out where its config class has a default for the key."""
        defaults = {member.model_fields[self.key].default for member in self}
        return next(iter(defaults)) if len(self._members) == 1 and all(isinstance(d, str) for d in defaults) else None

    def _tag_error(self, kind: Literal["family_tag_missing", "family_tag_unknown"], text: str, loc: tuple, value: Any) -> ValidationError:
        context = {"what": self.what, "key": self.key, "tag": value, "known": ", ".join(self.names)}
        detail = InitErrorDetails(type=PydanticCustomError(kind, text, context), loc=loc, input=value)
        return ValidationError.from_exception_data(self.what, [detail])

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.select,
            metadata={"family": self},
            serialization=core_schema.plain_serializer_function_ser_schema(_dump),
        )

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        branches = {name: self._describe(member, handler) for name, member in self._members.items()}
        mapping = {name: branch["$ref"] for name, branch in branches.items()}
        unique = [{"$ref": ref} for ref in dict.fromkeys(mapping.values())]
        required = {} if self._default_tag() else {"required": [self.key]}
        return {"oneOf": unique, "discriminator": {"propertyName": self.key, "mapping": mapping}, **required}

    def _describe(self, member: type[StrictModel], handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A reference to the member's definition; members may hold each other, so one that is being described is not entered again."""
        ref = f"{member.__module__}.{member.__qualname__}:{id(member)}"
        reference = core_schema.definition_reference_schema(ref)
        if member in self._open:
            return handler(reference)
        self._open.add(member)
        try:
            member.model_rebuild()
            described: Any = {**member.__pydantic_core_schema__, "ref": ref}
            return handler(core_schema.definitions_schema(reference, [described]))
        finally:
            self._open.discard(member)


def _dump(member: StrictModel) -> dict[str, Any]:
    return member.model_dump(mode="json", exclude_unset=True, by_alias=True)


def tags(member: type[BaseModel], key: str) -> tuple[str, ...]:
    """The names in the `Literal` annotation of the discriminating field."""
    return typing.get_args(member.model_fields[key].annotation)
