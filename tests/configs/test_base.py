"""Strict models and open families of components."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from stable_audio_tools.configs.base import Family, StrictModel, check_order
from stable_audio_tools.configs.errors import ConfigError


class Small(StrictModel):
    type: Literal["small", "tiny"]
    sizes: tuple[tuple[int, ...], ...] = ()


PARTS = Family("part", Small)
Part = Annotated[StrictModel, PARTS]


class Holder(StrictModel):
    part: Part
    more: tuple[Part, ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012


def test_arrays_become_tuples_and_instances_do_not_change():
    part = Small.model_validate({"type": "tiny", "sizes": [[1, 2], []]})
    assert part.sizes == ((1, 2), ())
    with pytest.raises(ValidationError):
        part.type = "small"


@pytest.mark.parametrize(
    "bad", [{"type": "small", "sizes": 1}, {"type": "small", "extra": 1}, {"type": "large"}, {}, [], {"type": "small", "sizes": [[1.0]]}]
)
def test_nothing_is_coerced_and_nothing_is_ignored(bad):
    with pytest.raises(ValidationError):
        Small.model_validate(bad)


def test_a_family_chooses_by_its_key_and_takes_ready_members():
    small = Small(type="small")
    holder = Holder.model_validate({"part": {"type": "tiny"}, "more": [small, {"type": "small"}]})
    assert [type(p) for p in (holder.part, *holder.more)] == [Small, Small, Small]
    assert PARTS.names == ("small", "tiny") and list(PARTS) == [Small] and PARTS["tiny"] is Small


def test_a_dump_holds_what_was_written_and_reads_back():
    data = {"part": {"type": "tiny", "sizes": [[1]]}, "options": {"a": [1]}}
    holder = Holder.model_validate(data)
    assert holder.model_dump(mode="json", exclude_unset=True) == data
    assert Holder.model_validate(holder.model_dump()) == holder


def test_members_join_at_any_time_and_names_are_taken_once():
    family = Family("thing", Small)
    holder = TypeAdapter(Annotated[StrictModel, family])
    with pytest.raises(ValidationError):
        holder.validate_python({"type": "late"})

    @family.register
    class Late(StrictModel):
        type: Literal["late"]

    assert isinstance(holder.validate_python({"type": "late"}), Late)
    assert family.register(Late) is Late
    assert set(holder.json_schema()["discriminator"]["mapping"]) == {"small", "tiny", "late"}

    class Thief(StrictModel):
        type: Literal["tiny"]

    with pytest.raises(ValueError, match="thing 'tiny' is already registered by Small"):
        family.register(Thief)


def test_the_only_member_needs_no_name_if_it_has_a_default():
    class Only(StrictModel):
        kind: Literal["only"] = "only"

    alone = TypeAdapter(Annotated[StrictModel, Family("part", Only, key="kind")])
    assert isinstance(alone.validate_python({}), Only)
    assert "required" not in alone.json_schema()
    with pytest.raises(ValidationError):
        TypeAdapter(Part).validate_python({})
    assert TypeAdapter(Part).json_schema()["required"] == ["type"]


FOREST = Family("tree")
Tree = Annotated[StrictModel, FOREST]


@FOREST.register
class Leaf(StrictModel):
    type: Literal["leaf"]


@FOREST.register
class Branch(StrictModel):
    type: Literal["branch"]
    left: Tree
    right: Tree | None = None


def test_members_may_hold_each_other():
    schema = TypeAdapter(Tree).json_schema()
    assert set(schema["$defs"]) == {"Leaf", "Branch"}
    assert schema["$defs"]["Branch"]["properties"]["left"]["oneOf"] == [{"$ref": "#/$defs/Leaf"}, {"$ref": "#/$defs/Branch"}]
    tree = {"type": "branch", "left": {"type": "branch", "left": {"type": "leaf"}}}
    assert TypeAdapter(Tree).validate_python(tree).left.left == Leaf(type="leaf")


class Range(StrictModel):
    low: int = 2
    high: int = 8


@pytest.mark.parametrize(
    ("given", "key", "fix"),
    [
        ({"high": 1}, "high", "make high the larger one"),
        ({"low": 8, "high": 8}, "high", "make high the larger one"),
        ({"low": 9}, "low", "make low the smaller one"),
    ],
)
def test_a_range_the_wrong_way_round_is_told_at_the_key_that_was_written(given, key, fix):
    config = Range.model_validate(given)
    with pytest.raises(ConfigError) as caught:
        check_order(config, "low", "high")
    (problem,) = caught.value.problems
    assert (problem.path, problem.fix) == ((key,), fix)
    assert problem.message == f"low must be below high, got {config.low} and {config.high}"


def test_a_range_the_right_way_round_is_good():
    check_order(Range(), "low", "high")
