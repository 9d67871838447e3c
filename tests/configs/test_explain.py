"""Every kind of mistake that a config can hold, and the words that a user gets for it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter, model_validator

from stable_audio_tools.configs.base import Family, StrictModel
from stable_audio_tools.configs.errors import MISSING, ConfigError, Problem, path_text, value_text
from stable_audio_tools.configs.parse import validate


class Params(StrictModel):
    channels: int = Field(8, gt=0, le=64)
    strides: tuple[int, ...] = Field((2, 4), min_length=1)
    betas: tuple[float, float] = (0.9, 0.99)
    activation: Literal["snake", "elu"] = "elu"
    levels: int | tuple[int, ...] = 4
    rank: int | Literal["full"] = 4
    seconds: Annotated[float, Field(ge=0.5)] | tuple[float, float] = 1.0
    name: str = Field("net", min_length=1, max_length=8)
    causal: bool = False
    rate: float = 1.0
    share: float = Field(0.5, ge=0, le=1)
    code: str = Field("a", pattern="^[a-z]$")

    @model_validator(mode="after")
    def _rules(self) -> Params:
        if self.channels == 7:
            raise ValueError("channels is 7; seven is not allowed")
        if self.channels == 9:
            raise ConfigError([Problem(("channels",), "nine channels", "use eight"), Problem(("strides", 1), "too wide")])
        return self


class Oobleck(StrictModel):
    type: Literal["oobleck"] = "oobleck"
    config: Params = Params()


class Dac(StrictModel):
    type: Literal["dac"] = "dac"
    latent_dim: int = Field(description="width of the latents")


ENCODERS = Family("encoder", Oobleck, Dac)
Encoder = Annotated[StrictModel, ENCODERS]


class Body(StrictModel):
    encoder: Encoder
    extras: tuple[Encoder, ...] = Field((), min_length=1)
    weights: dict[str, float] = Field({})
    pretransform: Encoder | None = None


class Auto(StrictModel):
    model_type: Literal["auto"]
    sample_rate: int
    model: Body
    training: dict[str, Any]


class Other(StrictModel):
    model_type: Literal["other"]


CONFIG = TypeAdapter(Annotated[Auto | Other, Field(discriminator="model_type")])


def document(**model: Any) -> dict[str, Any]:
    return {"model_type": "auto", "sample_rate": 8000, "model": {"encoder": {"type": "oobleck"}, **model}, "training": {}}


def params(**config: Any) -> dict[str, Any]:
    return document(encoder={"type": "oobleck", "config": config})


def problems(data: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        validate(CONFIG, data, "x.json", json.dumps(data, indent=2))
    return list(caught.value.problems)


ENC = "model.encoder.config"

CASES = [
    # keys
    (params(chanels=4), ENC + ".chanels", 'unknown key "chanels"', 'did you mean "channels"?'),
    (params(qqq=4), ENC + ".qqq", 'unknown key "qqq"', "known keys: channels, strides"),
    (document(encodr={}), "model.encodr", 'unknown key "encodr"', 'did you mean "encoder"? it is given already'),
    (
        document(encoder={"type": "oobleck", "channels": 4}),
        "model.encoder.channels",
        'unknown key "channels"',
        "it belongs in model.encoder.config",
    ),
    (params(sample_rate=4), ENC + ".sample_rate", 'unknown key "sample_rate"', "known keys"),
    (document(sample_rate=4), "model.sample_rate", 'unknown key "sample_rate"', "it belongs at the top level"),
    (
        document(encoder={"type": "dac"}),
        "model.encoder.latent_dim",
        'missing key "latent_dim"',
        "add it: a whole number (width of the latents)",
    ),
    ({**document(), "model": {}}, "model.encoder", 'missing key "encoder"', 'add it: an object with a "type": one of oobleck, dac'),
    ({**document(), "extra_key": 1}, "extra_key", 'unknown key "extra_key"', "known keys: model_type, sample_rate, model, training"),
    # types
    (params(channels="4"), ENC + ".channels", 'expected a whole number, got the text "4"', "remove the quotes: 4"),
    (params(rate="1e-4"), ENC + ".rate", 'expected a number, got the text "1e-4"', "remove the quotes: 1e-4"),
    (params(channels=4.0), ENC + ".channels", "expected a whole number, got 4.0", "write 4"),
    (params(channels=True), ENC + ".channels", "expected a whole number, got true", ""),
    (params(channels=None), ENC + ".channels", "expected a whole number, got null", "leave the key out for the default, 8"),
    (params(causal=1), ENC + ".causal", "expected true or false, got 1", "write true"),
    (params(causal="True"), ENC + ".causal", 'expected true or false, got the text "True"', "remove the quotes: true"),
    (params(causal="yes"), ENC + ".causal", 'expected true or false, got the text "yes"', ""),
    (params(name=5), ENC + ".name", "expected text in quotes, got 5", 'put it in quotes: "5"'),
    (params(strides=4), ENC + ".strides", "expected a list of whole numbers, got 4", "write [4]"),
    (params(strides=[2, "4"]), ENC + ".strides[1]", 'expected a whole number, got the text "4"', "remove the quotes: 4"),
    (params(strides="[2, 4]"), ENC + ".strides", "expected a list of whole numbers", "remove the quotes: [2, 4]"),
    (params(strides=[]), ENC + ".strides", "expected a list of whole numbers, but it is empty", ""),
    (params(betas=[0.9]), ENC + ".betas", "expected a list of 2 numbers, got 1", ""),
    (params(betas=[0.9, 0.8, 0.7]), ENC + ".betas", "expected a list of 2 numbers, got 3", ""),
    (params(name=""), ENC + ".name", "expected text, but it is empty", ""),
    (params(name="x" * 9), ENC + ".name", "expected text of at most 8 characters, got 9", ""),
    (params(code="AB"), ENC + ".code", "string should match pattern '^[a-z]$'", ""),
    (params(rate=float("inf")), ENC + ".rate", "expected a finite number, got inf", ""),
    (document(weights=[1]), "model.weights", "expected an object, got the list [1]", ""),
    (document(weights={"a": "b"}), "model.weights.a", 'expected a number, got the text "b"', ""),
    ({**document(), "model": []}, "model", "expected an object, got the list []", ""),
    # ranges and choices
    (params(share=1.5), ENC + ".share", "expected a number from 0 to 1, got 1.5", ""),
    (params(channels=0), ENC + ".channels", "expected a whole number above 0 and of at most 64, got 0", ""),
    (params(channels=65), ENC + ".channels", "expected a whole number above 0 and of at most 64, got 65", ""),
    (
        params(activation="snak"),
        ENC + ".activation",
        'expected one of "snake", "elu", got the text "snak"',
        'did you mean "snake"?',
    ),
    (params(activation=3), ENC + ".activation", 'expected one of "snake", "elu", got 3', ""),
    (document(extras=[]), "model.extras", "expected a list of objects, but it is empty", ""),
    # unions are one problem
    (params(levels="5"), ENC + ".levels", "expected a whole number or a list of whole numbers", "remove the quotes: 5"),
    (params(levels=[1, "a"]), ENC + ".levels[1]", 'expected a whole number, got the text "a"', ""),
    (params(rank="fll"), ENC + ".rank", 'expected a whole number or "full", got the text "fll"', ""),
    (params(seconds=0.1), ENC + ".seconds", "expected a number of at least 0.5, got 0.1", ""),
    (params(seconds="1"), ENC + ".seconds", "expected a number or a list of 2 numbers, got the text", "remove the quotes: 1"),
    (params(seconds=[1]), ENC + ".seconds", "expected a list of 2 numbers, got 1 entry", ""),
    # component types
    (
        document(encoder={"type": "oobelck"}),
        "model.encoder.type",
        'unknown encoder "oobelck"',
        'did you mean "oobleck"? known: oobleck, dac',
    ),
    (
        document(encoder={"type": "taae"}),
        "model.encoder.type",
        'unknown encoder "taae"',
        "published models have it, but it is not available in this version; known: oobleck, dac",
    ),
    (document(encoder={"type": 3}), "model.encoder.type", "expected the name of one encoder in quotes, got 3", "known: oobleck, dac"),
    (document(encoder={"config": {}}), "model.encoder.type", 'missing key "type"', "known: oobleck, dac"),
    (
        document(encoder="oobleck"),
        "model.encoder",
        'expected an object with a "type": one of oobleck, dac, got the text',
        'write {"type": "oobleck"}',
    ),
    (
        document(extras=[{"type": "dac", "latent_dim": 2}, {"type": "x"}]),
        "model.extras[1].type",
        'unknown encoder "x"',
        "known: oobleck, dac",
    ),
    (document(pretransform={"type": "dac", "latentdim": 1}), "model.pretransform.latentdim", "unknown key", 'did you mean "latent_dim"?'),
    # whole documents, in the words of the contract
    ({}, "", "model_type must be specified in model config", 'add "model_type": one of "auto", "other"'),
    ({"model": {}}, "", "model_type must be specified in model config", 'add "model_type"'),
    ({"modeltype": "auto"}, "", "model_type must be specified in model config", '"modeltype" should be "model_type"'),
    ({"model_type": "aut"}, "model_type", "Unknown model type: aut", 'did you mean "auto"? known: auto, other'),
    ({"model_type": "lm"}, "model_type", "Unknown model type: lm", "published models have it, but it is not available in this version"),
    ({"model_type": 3}, "model_type", "Unknown model type: 3", "known: auto, other"),
    ({k: v for k, v in document().items() if k != "training"}, "", "training config must be specified in model config", 'add "training"'),
    ([1], "", "expected an object, got the list [1]", ""),
    # rules in the config classes' own words
    (params(channels=7), "model.encoder.config", "channels is 7; seven is not allowed", ""),
]


@pytest.mark.parametrize(("data", "path", "message", "fix"), CASES, ids=[f"{path}-{message}"[:70] for _, path, message, _ in CASES])
def test_a_mistake_is_one_problem_in_plain_words(data, path, message, fix):
    (problem,) = problems(data)
    assert path_text(problem.path) == path
    assert message in problem.message
    assert fix in problem.fix if fix else not problem.fix


def test_a_misspelt_required_key_is_one_problem():
    (problem,) = problems(document(encoder={"type": "dac", "latentdim": 4}))
    assert problem.fix == 'did you mean "latent_dim"?'


def test_a_validator_may_name_the_keys_that_are_at_fault():
    found = problems(params(strides=[1, 2], channels=9))
    assert [(path_text(p.path), p.message, p.fix) for p in found] == [
        (ENC + ".strides[1]", "too wide", ""),
        (ENC + ".channels", "nine channels", "use eight"),
    ]


def test_every_problem_is_reported_in_the_order_of_the_file():
    data = params(betas=[1], chanels=3, rate="1")
    data["model"]["extras"] = [{"type": "nope"}]
    data["training"], data["sample_rate"] = 5, "8000"
    found = [path_text(p.path) for p in problems(data)]
    inside = ENC + "."
    assert found == ["sample_rate", inside + "betas", inside + "chanels", inside + "rate", "model.extras[0].type", "training"]


def test_a_problem_is_shown_with_its_line():
    text = '{"model_type": "auto", "sample_rate": 8000, "training": {},\n "model": {"encoder": {"type": "oobelck"}}}'
    with pytest.raises(ConfigError) as caught:
        validate(CONFIG, json.loads(text), "x.json", text)
    assert str(caught.value) == "\n".join(
        [
            "x.json:2:32  model.encoder.type",
            '  unknown encoder "oobelck"',
            '      2 |  "model": {"encoder": {"type": "oobelck"}}}',
            "        |                                ^^^^^^^^^",
            '        = did you mean "oobleck"? known: oobleck, dac',
        ]
    )


def test_without_the_text_path_and_value_are_shown():
    with pytest.raises(ConfigError) as caught:
        validate(CONFIG, params(channels=0, rate="x"), "model config")
    assert str(caught.value).splitlines() == [
        "model config: 2 problems",
        "model config: model.encoder.config.channels",
        "  expected a whole number above 0 and of at most 64, got 0",
        "model config: model.encoder.config.rate",
        '  expected a number, got the text "x"',
    ]


def test_what_machines_get():
    data = params(chanels=4)
    with pytest.raises(ConfigError) as caught:
        validate(CONFIG, data, "x.json", json.dumps(data, indent=2))
    report = json.loads(json.dumps(caught.value.to_dict()))
    problem = {"path": ENC + ".chanels", "message": 'unknown key "chanels"', "fix": 'did you mean "channels"?', "value": 4}
    assert report == {"source": "x.json", "problems": [{**problem, "line": 8, "column": 9}]}


def test_a_lone_message_names_its_source():
    assert str(ConfigError("no such file", "x.json")) == "x.json: no such file"
    assert str(ConfigError([Problem((), "too old", "export it again")], "x.ckpt")) == "x.ckpt: too old\n  = export it again"
    assert str(ConfigError([Problem(("a", 0), "too big", value=5)])) == "a[0]\n  too big (got 5)"


def test_odd_keys_and_values_are_written_safely():
    assert path_text(("a", 0, "b c", "$d")) == 'a[0]["b c"].$d'
    assert value_text("\x9b2J") == '"\\u009b2J"'
    assert value_text(list(range(100))).endswith("…")
    assert Problem((), "x").value is MISSING
