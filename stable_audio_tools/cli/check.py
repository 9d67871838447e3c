"""`check CONFIG...`: validates model and dataset configs, says what each is, and builds no weights.

A parameter count comes from the meta device, where tensors have shapes and no memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from stable_audio_tools.configs.errors import ConfigError

Facts = dict[str, Any]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="JSON files of models or datasets")
    parser.add_argument("--data", action="store_true", help="also read the audio of dataset configs and report what is in it")
    parser.add_argument("--json", action="store_true", help="print the result for machines")


def run(args: argparse.Namespace) -> int:
    """Check every file; returns 0 if all are good, else 2."""
    results = [check_file(path, read_data=args.data) for path in args.configs]
    if args.json:
        print(json.dumps([{**facts, **(error.to_dict() if error else {})} for facts, error in results], indent=2))
    else:
        for facts, error in results:
            print(_table(facts) if error is None else f"error: {error}", file=sys.stdout if error is None else sys.stderr)
    return 2 if any(error for _, error in results) else 0


def check_file(path: str, *, read_data: bool = False) -> tuple[Facts, ConfigError | None]:
    """What a config file describes, or what is wrong with it."""
    from stable_audio_tools.configs.parse import read_json

    try:
        document, text = read_json(path)
        describe = _dataset if _is_dataset(document) else _model
        return {"file": path, "ok": True, **describe(document, path, text, read_data)}, None
    except ConfigError as error:
        return {"file": path, "ok": False}, error


def _is_dataset(document: Any) -> bool:
    return isinstance(document, Mapping) and "model_type" not in document and ("dataset_type" in document or "datasets" in document)


def _model(document: Any, path: str, text: str, read_data: bool) -> Facts:
    from stable_audio_tools.training.config import parse_run_config

    config = parse_run_config(document, path, text)
    return {
        "kind": "model config",
        "type": config.model_type,
        "sample_rate": config.sample_rate,
        "sample_size": config.sample_size,
        "audio_channels": config.audio_channels,
        **_latents(config),
        "parameters": _parameters(document),
    }


def _latents(config: Any) -> Facts:
    """The domain that the model works in: channels, and samples per frame."""
    body = config.model
    pretransform = getattr(body, "pretransform", None)
    channels = getattr(body, "latent_dim", None) or body.io_channels
    ratio = getattr(body, "downsampling_ratio", None) or (pretransform.downsampling_ratio if pretransform else 1)
    frames = config.sample_size // ratio
    return {"latent_shape": [channels, frames], "downsampling_ratio": ratio, "frame_rate": config.sample_rate / ratio}


def _parameters(document: Mapping[str, Any]) -> dict[str, int]:
    """Parameters of each part of the model."""
    import torch

    from stable_audio_tools.models.factory import create_model_from_config

    with torch.device("meta"):
        model = create_model_from_config(document)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    return {name: count for name, count in counts.items() if count}


def _dataset(document: Any, path: str, text: str, read_data: bool) -> Facts:
    from stable_audio_tools.data.dataset import parse_dataset_config

    config = parse_dataset_config(path)
    return {"kind": "dataset config", "type": config.dataset_type}


def _table(facts: Facts) -> str:
    """The facts of one good config, for people."""
    rows = {"type": facts["type"]}
    if facts["kind"] == "model config":
        size, rate, channels = facts["sample_size"], facts["sample_rate"], facts["audio_channels"]
        sizes = facts["latent_shape"]
        rows["parameters"] = _count(sum(facts["parameters"].values())) + _shares(facts["parameters"])
        rows["clip"] = f"{size} samples at {rate} Hz, {size / rate:.2f} s, {'mono' if channels == 1 else f'{channels} channels'}"
        rows["latents"] = (
            f"{sizes[0]} channels x {sizes[1]} frames of {facts['downsampling_ratio']} samples, {facts['frame_rate']:.4g} a second"
        )
    return "\n".join([f"{facts['file']}: good {facts['kind']}", *(f"  {name:<11} {text}" for name, text in rows.items())])


def _shares(counts: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{name} {_count(count)}' for name, count in counts.items())})" if len(counts) > 1 else ""


def _count(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
