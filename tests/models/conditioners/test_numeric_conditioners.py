"""Whole numbers, numbers and choices: ranges, kinds of value, and what is refused."""

import json
import logging
import math

import pytest
import torch
from reference_rule import FOLDER, assert_matches, rule_value
from safetensors.torch import load_file

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.conditioners import ConditionerConfig


def conditioner(kind, dim=8, **config):
    return validate(ConditionerConfig, {"id": "x", "type": kind, "config": config}, "conditioner").build(dim)


def vectors(made, *values):
    return made(made.prepare(values)).pooled


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "config", "values"),
    [("number", {"max_val": 512}, (0, 1, 47.5, 512, 600, -5)), ("list", {"options": ["jazz", "rock"]}, ("jazz", "rock", "neither"))],
)
def test_recorded_numbers_are_met(kind, config, values):
    made = conditioner(kind, dim=24, **config)
    table, state = json.loads((FOLDER / "conditioners.json").read_text())[kind], made.state_dict(keep_vars=True)
    assert {key: list(value.shape) for key, value in state.items()} == {key: entry[0] for key, entry in table.items()}
    for index, key in enumerate(sorted(table)):
        state[key].copy_(rule_value(table[key][3], state[key], index))
    assert_matches(made(made.prepare(values)).tensor, load_file(FOLDER / "conditioners.safetensors")[f"{kind}.out"], 1e-6)


@pytest.mark.parametrize(("kind", "config"), [("int", {}), ("number", {}), ("list", {"options": ["a"]})])
def test_each_gives_one_token_and_the_same_vector(kind, config):
    made = conditioner(kind, output_dim=6, **config)
    condition = made(made.prepare([1, 0]))
    assert condition.tensor.shape == (2, 1, 6) and condition.mask.all() and condition.mask.shape == (2, 1)
    assert condition.pooled.shape == (2, 6) and condition.null is None
    torch.testing.assert_close(condition.tensor[:, 0], condition.pooled)


def test_a_range_of_integers_may_start_anywhere():
    made = conditioner("int", min_val=10, max_val=12)
    assert made.int_embedder.num_embeddings == 3
    assert made.prepare([9, 10, 11.0, torch.tensor(12), 99]).tolist() == [0, 0, 1, 2, 2]


def test_a_negative_range_of_integers():
    assert conditioner("int", min_val=-3, max_val=-1).prepare([-3, -1]).tolist() == [0, 2]


def test_numbers_are_clamped_to_their_range():
    made = conditioner("number", min_val=-1, max_val=3)
    assert made.prepare([-5, -1, 1, 3, 700]).tolist() == [0, 0, 0.5, 1, 1]
    torch.testing.assert_close(vectors(made, -5.0, 700), vectors(made, -1, 3))


def test_numbers_of_any_make_are_the_same_number():
    import numpy

    made = conditioner("number")
    assert len(set(made.prepare([0.5, torch.tensor(0.5), torch.tensor([0.5]), numpy.float32(0.5)]).tolist())) == 1


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("int", 2.5, "item 1: expected a whole number, got 2.5"),
        ("int", "7", 'item 1: expected a number, got "7"'),
        ("number", True, "item 1: expected a number, got true"),
        ("number", None, "item 1: expected a number, got null"),
        ("number", math.nan, "item 1: expected a finite number, got nan"),
        ("number", torch.ones(2), r"item 1: expected one number, got a tensor of shape \(2,\)"),
    ],
)
def test_other_values_are_refused_with_their_place(kind, value, message):
    with pytest.raises(ValueError, match=message):
        conditioner(kind).prepare([1, value])


def test_an_unlisted_choice_is_one_unknown_and_reported_once(caplog):
    made = conditioner("list", options=["rock", "jazz", 3])
    with caplog.at_level(logging.WARNING):
        assert made.prepare(["rock", "jazz", 3, "jaz", None, True]).tolist() == [1, 2, 3, 0, 0, 0]
    assert [record.message for record in caplog.records] == ['"jaz" is none of the options rock, jazz, 3 and is taken as unknown']


def test_an_option_listed_twice_keeps_its_first_row(caplog):
    made = conditioner("list", options=["a", "b", "a"])
    assert made.prepare(["a", "b"]).tolist() == [1, 2]
    assert len(made.embedder.weight) == 4  # as a checkpoint of such a config has it
    assert "listed twice" in caplog.text


def test_a_range_of_one_number():
    assert conditioner("int", min_val=5, max_val=5).prepare([3, 5, 9]).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("int", {"min_val": 5, "max_val": 4}, "min_val must be below max_val, got 5 and 4"),
        ("number", {"min_val": 2.0, "max_val": 1.0}, "min_val must be below max_val, got 2.0 and 1.0"),
        ("list", {"options": []}, "it is empty"),
        ("list", {}, 'missing key "options"'),
    ],
)
def test_bad_configs(kind, config, message):
    with pytest.raises(ConfigError, match=message):
        conditioner(kind, **config)
