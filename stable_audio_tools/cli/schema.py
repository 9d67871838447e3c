"""`schema`: the JSON Schema of model or dataset configs, for editors that complete and check while one types.

In VS Code: save the output as `model.schema.json` and begin a config with `"$schema": "model.schema.json"`.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from stable_audio_tools.cli.plugins import add_plugins_flag, import_plugins

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=("model", "dataset"), help="which kind of config")
    add_plugins_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Print the schema; returns the exit status."""
    import_plugins(args.plugins)
    print(json.dumps(schema_of(args.kind), indent=2, ensure_ascii=False))
    return 0


def schema_of(kind: str) -> dict[str, Any]:
    """The schema of "model" (training included) or "dataset" configs, with every component that is registered now."""
    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema

    class Untitled(GenerateJsonSchema):
        """A title that repeats the key says nothing."""

        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

    schema = TypeAdapter(_annotation(kind)).json_schema(schema_generator=Untitled)
    for name in {branch["$ref"].rpartition("/")[2] for branch in schema.get("oneOf", ())}:
        schema["$defs"][name]["properties"]["$schema"] = {"type": "string", "description": "this schema's place, read by editors alone"}
    return {"$schema": DIALECT, "title": f"stable-audio-tools {kind} config", **schema}


def _annotation(kind: str) -> Any:
    if kind == "model":
        from stable_audio_tools.training.config import RunConfig

        return RunConfig
    from stable_audio_tools.data.dataset import DatasetConfig

    return DatasetConfig
