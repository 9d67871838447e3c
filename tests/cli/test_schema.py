"""`schema`: a JSON Schema that accepts what validation accepts, and refuses the slips that an editor should underline."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.cli.main import main
from stable_audio_tools.cli.schema import schema_of

KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "number": (int, float), "integer": int}
WORDS = {
    "$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default", "description", "discriminator", "enum",
    "exclusiveMaximum", "exclusiveMinimum", "items", "maxItems", "maximum", "maxLength", "minItems", "minimum", "minLength",
    "multipleOf", "oneOf", "pattern", "prefixItems", "properties", "required", "title", "type",
}  # fmt: skip


def fits(value, schema, root):
    """The part of JSON Schema 2020-12 that our schemas use."""
    assert set(schema) <= WORDS, set(schema) - WORDS
    if "$ref" in schema and not fits(value, at(root, schema["$ref"]), root):
        return False
    if "oneOf" in schema and sum(fits(value, branch, root) for branch in schema["oneOf"]) != 1:
        return False
    if "anyOf" in schema and not any(fits(value, branch, root) for branch in schema["anyOf"]):
        return False
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return False
    kind = schema.get("type")
    if kind and (not isinstance(value, KINDS[kind]) or isinstance(value, bool) != (kind == "boolean")):
        return False
    if isinstance(value, dict):
        return fits_object(value, schema, root)
    if isinstance(value, list):
        return fits_array(value, schema, root)
    if isinstance(value, str):
        return schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9) and bool(
            re.search(schema.get("pattern", ""), value)
        )
    return value is None or fits_number(value, schema)


def fits_object(value, schema, root):
    known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
    if not set(schema.get("required", ())) <= set(value):
        return False
    for key, item in value.items():
        if key in known:
            allowed = fits(item, known[key], root)
        else:
            allowed = other if isinstance(other, bool) else fits(item, other, root)
        if not allowed:
            return False
    return True


def fits_array(value, schema, root):
    fixed = schema.get("prefixItems", [])
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9):
        return False
    if not all(fits(item, part, root) for item, part in zip(value, fixed, strict=False)):
        return False
    return all(fits(item, schema.get("items", {}), root) for item in value[len(fixed) :])


def fits_number(value, schema):
    inside = schema.get("minimum", -1e300) <= value <= schema.get("maximum", 1e300)
    return inside and schema.get("exclusiveMinimum", -1e300) < value < schema.get("exclusiveMaximum", 1e300)


def at(root, ref):
    assert ref.startswith("#/$defs/")
    return root["$defs"][ref.removeprefix("#/$defs/")]


@pytest.fixture(scope="module")
def model_schema():
    return schema_of("model")


@pytest.fixture(scope="module")
def dataset_schema():
    return schema_of("dataset")


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_the_schema_is_printed_for_editors(kind, capsys):
    assert main(["schema", kind]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "$id" not in json.dumps(schema)
    assert "description" in json.dumps(schema)


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_every_reference_has_its_definition(kind):
    schema = schema_of(kind)
    refs = re.findall(r'"(#/[^"]*)"', json.dumps(schema))
    assert refs and {ref.removeprefix("#/$defs/") for ref in refs} <= set(schema["$defs"])


@pytest.mark.parametrize("document", [configs.text_to_audio(), configs.autoencoder()], ids=["text_to_audio", "autoencoder"])
def test_good_model_configs_fit(document, model_schema):
    assert fits(document, model_schema, model_schema)
    assert fits({"$schema": "model.schema.json", **document}, model_schema, model_schema)


def test_good_dataset_configs_fit(dataset_schema):
    assert fits({"dataset_type": "synthetic", "num_items": 5}, dataset_schema, dataset_schema)
    assert fits({"dataset_type": "audio_dir", "datasets": [{"id": "a", "path": "b"}]}, dataset_schema, dataset_schema)


@pytest.mark.parametrize("slip", ["key", "type", "tag", "range", "missing", "choice"])
def test_slips_do_not_fit(slip, model_schema):
    document = configs.text_to_audio()
    dit = document["model"]["diffusion"]["config"]
    match slip:
        case "key":
            dit["embed_dm"] = 32
        case "type":
            dit["depth"] = "2"
        case "tag":
            document["model"]["pretransform"]["type"] = "patchd"
        case "range":
            document["training"]["cfg_dropout_prob"] = 1.5
        case "missing":
            del document["sample_rate"]
        case "choice":
            dit["global_cond_type"] = "adaln"
    assert not fits(document, model_schema, model_schema)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).resolve().parents[2] / "model_configs").rglob("*.json")), ids=lambda path: path.stem
)
def test_the_configs_that_come_with_the_project_fit(path, model_schema, dataset_schema):
    document = json.loads(path.read_text())
    schema = dataset_schema if "dataset_type" in document else model_schema
    assert fits(document, schema, schema)
