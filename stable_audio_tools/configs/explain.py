"""Pydantic's errors in plain words: the path a user sees in the file, the value, what was expected, and the fix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from .base import tags
from .errors import ConfigError, Problem, path_text, value_text
from .published import PUBLISHED
from .shape import Place, one_of, walk
from .source import Path
from .suggest import closest, did_you_mean, listed

MAX_DISTANCE = 2  # steps up and down the document within which a misplaced key's right object is looked for
MISSING_SECTION = {
    "model_type": "model_type must be specified in model config",
    "training": "training config must be specified in model config",
}
BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "of at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "of at most"),
    "multiple_of": ("multiple_of", "that is a multiple of"),
}


@dataclass(frozen=True)
class Fault:
    """One pydantic error, its path without union tags.

    place, parent: what may stand at the path and around it.
    union: the path of the innermost plain union passed on the way, and which option was tried.
    """

    detail: Mapping[str, Any]
    path: Path
    place: Place
    parent: Place
    root: Place
    union: tuple[Path, str] | None = None

    @property
    def kind(self) -> str:
        return self.detail["type"]

    @property
    def value(self) -> Any:
        return self.detail["input"]

    @property
    def context(self) -> Mapping[str, Any]:
        return self.detail.get("ctx", {})


def explain(error: ValidationError, root: Place) -> list[Problem]:
    """Everything that `error` reports about the document at `root`, each thing once."""
    faults = [_fault(detail, root) for detail in error.errors(include_url=False)]
    for once in (_without_recounts, _without_echoes, _one_per_union):
        faults = once(faults)
    return [problem for fault in faults for problem in _problems(fault)]


def _fault(detail: Any, root: Place) -> Fault:
    path: Path = ()
    place = parent = root
    union = None
    for segment, reached in walk(root, detail["loc"]):
        if segment is None:
            union = union if place.tag_key else (path, reached.words())
        else:
            path, parent = (*path, segment), place
        place = reached
    return Fault(detail, path, place, parent, root, union)


def _without_recounts(faults: list[Fault]) -> list[Fault]:
    """Pydantic counts the good entries of a list; "too short" for the bad ones, which have faults of their own, is no news."""
    inside = {fault.path[:depth] for fault in faults for depth in range(len(fault.path))}
    return [fault for fault in faults if not (fault.kind == "too_short" and fault.path in inside)]


def _without_echoes(faults: list[Fault]) -> list[Fault]:
    """A misspelt required key is one problem: it is not "missing" too."""
    meant = {(*fault.path[:-1], _meant_key(fault)) for fault in faults if fault.kind == "extra_forbidden"}
    return [fault for fault in faults if not (fault.kind == "missing" and fault.path in meant)]


def _one_per_union(faults: list[Fault]) -> list[Fault]:
    """A value that fits no option of a union is one problem."""
    branches: dict[Path, list[Fault]] = {}
    for fault in faults:
        if fault.union:
            branches.setdefault(fault.union[0], []).append(fault)
    chosen = {id(fault): _nearest(group) for group in branches.values() for fault in group[:1]}
    return [one for fault in faults for one in (chosen.get(id(fault), []) if fault.union else [fault])]


def _nearest(faults: list[Fault]) -> list[Fault]:
    """The faults of the option that fits best: one whose parts are at fault, else one whose range is, else one fault of the whole."""
    assert faults[0].union is not None
    path = faults[0].union[0]
    inside = [fault for fault in faults if len(fault.path) > len(path)]
    if inside:
        return [fault for fault in inside if fault.union == inside[0].union]
    if of_range := [fault for fault in faults if not (fault.kind.endswith("_type") or fault.kind == "literal_error")]:
        return of_range[:1]
    words = " or ".join(dict.fromkeys(fault.union[1] for fault in faults if fault.union))
    return [replace(faults[0], detail={**faults[0].detail, "type": "union", "ctx": {"expected": words}})]


def _problems(fault: Fault) -> list[Problem]:
    if fault.kind in ("value_error", "assertion_error"):
        return _rule(fault)
    return [_EXPLANATIONS.get(fault.kind, _mismatch)(fault)]


def _rule(fault: Fault) -> list[Problem]:
    """A cross-field rule of a config class, in its own words."""
    error = fault.context.get("error")
    if isinstance(error, ConfigError):
        return [replace(problem, path=(*fault.path, *problem.path)) for problem in error.problems]
    return [Problem(fault.path, str(error) if error else fault.detail["msg"])]


def _missing(fault: Fault) -> Problem:
    key = fault.path[-1]
    if isinstance(key, int):
        return _length(replace(fault, path=fault.path[:-1], place=fault.parent))
    if key in MISSING_SECTION:
        return Problem(fault.path[:-1], MISSING_SECTION[key], f'add "{key}"')
    description = fault.place.field.description if fault.place.field else None
    return Problem(fault.path, f'missing key "{key}"', f"add it: {fault.place.words()}" + (f" ({description})" if description else ""))


def _unknown_key(fault: Fault) -> Problem:
    return Problem(fault.path, f"unknown key {value_text(fault.path[-1])}", _right_key(fault), fault.value, on_key=True)


def _right_key(fault: Fault) -> str:
    """A near-miss in this object, the same key's right object, or the keys there are."""
    if meant := _meant_key(fault):
        return f'did you mean "{meant}"?'
    if homes := _homes(fault):
        nearest = [path for distance, path in homes if distance == homes[0][0]]
        home = "in " + " or ".join(path_text(path) for path in nearest) if all(nearest) else "at the top level"
        given = all(fault.path[-1] in _keys(place.value) for path, place in fault.root.objects() if path in nearest)
        return f"it belongs {home}" + (", where it is given already" if given else "")
    known = list(fault.parent.fields)
    if near := closest(str(fault.path[-1]), known):
        return f'did you mean "{near}"? it is given already'
    return f"known keys: {listed(known)}" if known else "this object has no keys"


def _meant_key(fault: Fault) -> str | None:
    """The key of this object that an unknown key is a slip of; not where the next object has the very key."""
    homes, given = _homes(fault), _keys(fault.parent.value)
    if homes and homes[0][0] == 1:
        return None
    return closest(str(fault.path[-1]), [name for name in list(fault.parent.fields) if name not in given])


def _homes(fault: Fault) -> list[tuple[int, Path]]:
    """The objects near by that know this key, with their distance in steps, the nearest first."""
    here, key = fault.path[:-1], fault.path[-1]
    found = [(_distance(here, path), path) for path, place in fault.root.objects() if key in place.fields and path != here]
    return sorted(home for home in found if home[0] <= MAX_DISTANCE)


def _distance(a: Path, b: Path) -> int:
    shared = next((index for index, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))
    return len(a) + len(b) - 2 * shared


def _choice(fault: Fault) -> Problem:
    choices = fault.place.choices
    near = closest(fault.value, [c for c in choices if isinstance(c, str)]) if isinstance(fault.value, str) else None
    message = f"expected {one_of(choices) if choices else fault.context.get('expected')}, got {_got(fault.value)}"
    return Problem(fault.path, message, f'did you mean "{near}"?' if near else _type_fix(fault), fault.value)


def _bound(fault: Fault) -> Problem:
    limits = {BOUNDS[fault.kind][0]: fault.context[BOUNDS[fault.kind][0]]}
    for note in fault.place.field.metadata if fault.place.field else ():
        limits |= {name: getattr(note, name) for name, _ in BOUNDS.values() if hasattr(note, name)}
    if {"ge", "le"} <= set(limits):
        words = f"from {value_text(limits['ge'])} to {value_text(limits['le'])}"
    else:
        words = " and ".join(f"{text} {value_text(limits[name])}" for name, text in BOUNDS.values() if limits.get(name) is not None)
    kind = fault.place.words() if fault.place.options else "a number"
    return Problem(fault.path, f"expected {kind} {words}, got {_got(fault.value)}", "", fault.value)


def _length(fault: Fault) -> Problem:
    """A list or text that is too short or too long."""
    is_text = isinstance(fault.value, str)
    count = len(fault.value) if isinstance(fault.value, (list, tuple, str, Mapping)) else 0
    what, unit = ("text", "characters") if is_text else (fault.place.words(), "entries")
    least, most = fault.context.get("min_length"), fault.context.get("max_length")
    if count == 0 and least == 1:
        return Problem(fault.path, f"expected {what}, but it is empty", "", fault.value)
    fixed = f"a list of {most} " in what  # the words have the length already
    limits = [f"at least {least}"] * (least is not None) + [f"at most {most}"] * (most is not None and not fixed)
    size = f" of {' and '.join(limits)} {unit}" if limits else ""
    got = str(count) if size else f"{count} {unit if count != 1 else 'entry'}"
    return Problem(fault.path, f"expected {what}{size}, got {got}", "", fault.value)


def _unknown_tag(fault: Fault) -> Problem:
    """An unknown `type` of a component family: the path ends in the tag's key."""
    what, known = fault.context["what"], fault.context["known"].split(", ")
    if isinstance(fault.value, str):
        message = f'unknown {what} "{fault.value}"'
    else:
        message = f"expected the name of one {what} in quotes, got {_got(fault.value)}"
    return Problem(fault.path, message, _right_name(what, fault.value, known), fault.value)


def _not_a_component(fault: Fault) -> Problem:
    """Something else than an object where a component stands, such as its bare name."""
    key, names = fault.context["key"], fault.place.family.names if fault.place.family else ()
    fix = f'write {{"{key}": "{fault.value}"}}' if fault.value in names else ""
    return Problem(fault.path, f"expected {fault.place.words()}, got {_got(fault.value)}", fix, fault.value)


def _missing_tag(fault: Fault) -> Problem:
    key, known = fault.context["key"], fault.context["known"]
    return Problem((*fault.path, key), f'missing key "{key}"', _near_key(fault, key) or f"known: {known}")


def _unknown_option(fault: Fault) -> Problem:
    """An unknown tag of a pydantic union: the path ends at the union's object."""
    key = _discriminator(fault)
    value = fault.value.get(key) if isinstance(fault.value, Mapping) else fault.context["tag"]
    known = [name for option in fault.place.options for name in _tags(option, key)]
    what = "model type" if key == "model_type" else key
    message = f"Unknown {what}: {value if isinstance(value, str) else value_text(value)}"
    return Problem((*fault.path, key), message, _right_name(what, value, known), value)


def _missing_option(fault: Fault) -> Problem:
    key = _discriminator(fault)
    known = [name for option in fault.place.options for name in _tags(option, key)]
    fix = _near_key(fault, key) or f'add "{key}": {one_of(tuple(known))}'
    return Problem(fault.path, MISSING_SECTION.get(key, f'missing key "{key}"'), fix)


def _right_name(what: str, name: Any, known: list[str]) -> str:
    """A near-miss, unless the name is right and only the component is missing."""
    if isinstance(name, str) and name in PUBLISHED.get(what, ()):
        return f"published models have it, but it is not available in this version; known: {listed(known)}"
    return did_you_mean(name, known)


def _near_key(fault: Fault, key: str) -> str:
    """A key of the object that no option knows and that looks like the missing one."""
    options = tuple(fault.place.family or fault.place.options)
    fields = {name for option in options for name in getattr(option, "model_fields", ())}
    near = next((given for given in _keys(fault.value) if given not in fields and closest(given, [key])), None)
    return f'"{near}" should be "{key}"' if near else ""


def _mismatch(fault: Fault) -> Problem:
    """A value of the wrong type, or what a config class has said in its own words."""
    message = fault.detail["msg"]
    if fault.kind == "union" or fault.kind.endswith("_type"):
        words = fault.context.get("expected") or (fault.place.words() if fault.place.options else _pydantic_words(message))
        return Problem(fault.path, f"expected {words}, got {_got(fault.value)}", _type_fix(fault), fault.value)
    if message.startswith("Input should be "):
        return Problem(fault.path, f"expected {_pydantic_words(message)}, got {_got(fault.value)}", "", fault.value)
    return Problem(fault.path, message[:1].lower() + message[1:], "", fault.value)


def _not_finite(fault: Fault) -> Problem:
    return Problem(fault.path, f"expected a finite number, got {fault.value}")


def _invalid_key(fault: Fault) -> Problem:
    return Problem(fault.path, f"keys are text, got {value_text(fault.value)}", on_key=True)


def _pydantic_words(message: str) -> str:
    return message.removeprefix("Input should be ").removeprefix("a valid ")


def _type_fix(fault: Fault) -> str:
    """What turns the value into one that fits, if that is plain."""
    value, field = fault.value, fault.place.field
    if value is None and field is not None and not field.is_required():
        default = field.get_default(call_default_factory=True, validated_data={})
        shown = default is not None and isinstance(default, (bool, int, float, str, tuple))
        return "leave the key out for the default" + (f", {value_text(default)}" if shown else "")
    wants = {option for option in fault.place.options if isinstance(option, type)}
    if isinstance(value, str) and str not in wants:
        return _quotes_fix(value, wants == {bool}) or _list_fix(value, fault.place.words())
    if wants == {bool} and value in (0, 1):
        return f"write {'true' if value else 'false'}"
    if int in wants and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if str in wants and isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'put it in quotes: "{value_text(value)}"'
    if isinstance(value, (int, float)) and fault.place.words() in ("a list of whole numbers", "a list of numbers"):
        return f"write [{value_text(value)}]"
    return ""


def _list_fix(text: str, words: str) -> str:
    """A text that stands where a list belongs: one entry of it, or all of them between commas."""
    if words == "a list of texts in quotes":
        return f"write [{', '.join(value_text(part.strip()) for part in text.split(','))}]"
    numbers = [part.strip() for part in text.strip("[]() ").split(",")]
    are_numbers = all(part.removeprefix("-").replace(".", "", 1).isdigit() for part in numbers)
    return f"write [{', '.join(numbers)}]" if are_numbers and "numbers" in words else ""


def _quotes_fix(text: str, wants_bool: bool) -> str:
    """A number, list or boolean that stands in quotes."""
    plain = text.lower() if wants_bool else text
    try:
        inside = json.loads(plain)
    except ValueError:
        return ""
    fits = isinstance(inside, bool) if wants_bool else isinstance(inside, (int, float, list, dict))
    return f"remove the quotes: {plain}" if fits else ""


def _got(value: Any) -> str:
    """A value with the name of its kind, since "1" and 1 look alike."""
    if isinstance(value, str):
        return f"the text {value_text(value)}"
    if isinstance(value, (list, tuple)):
        shown = value_text(value)
        return f"the list {shown}" if not shown.endswith("…") else f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return "an object"
    return value_text(value)


def _discriminator(fault: Fault) -> str:
    return fault.context["discriminator"].strip("'")


def _tags(option: Any, key: str) -> tuple[str, ...]:
    return tags(option, key) if hasattr(option, "model_fields") else ()


def _keys(value: Any) -> list[str]:
    return [key for key in value if isinstance(key, str)] if isinstance(value, Mapping) else []


_EXPLANATIONS: dict[str, Callable[[Fault], Problem]] = {
    "missing": _missing,
    "extra_forbidden": _unknown_key,
    "literal_error": _choice,
    **dict.fromkeys(BOUNDS, _bound),
    **dict.fromkeys(("too_short", "too_long", "string_too_short", "string_too_long"), _length),
    "family_not_object": _not_a_component,
    "family_tag_unknown": _unknown_tag,
    "family_tag_missing": _missing_tag,
    "union_tag_invalid": _unknown_option,
    "union_tag_not_found": _missing_option,
    "finite_number": _not_finite,
    "invalid_key": _invalid_key,
}
