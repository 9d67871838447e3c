"""`check CONFIG...`: validates model and dataset configs, says what each is, and builds no weights.

A parameter count comes from the meta device, where tensors have shapes and no memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.plugins import add_plugins_flag, import_plugins
from stable_audio_tools.cli.scan_progress import ScanProgress
from stable_audio_tools.cli.values import whole
from stable_audio_tools.configs.errors import ConfigError, Problem

Facts = dict[str, Any]
MODEL, DATASET = "model config", "dataset config"


@dataclass(frozen=True)
class Checked:
    """One file: what it describes, what its data are in words, and what is wrong."""

    file: str
    facts: Facts = field(default_factory=dict)
    report: tuple[str, ...] = ()
    error: ConfigError | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"file": self.file, "ok": self.error is None, **self.facts, **(self.error.to_dict() if self.error else {})}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="JSON files of models or datasets")
    parser.add_argument("--data", action="store_true", help="also read the audio of dataset configs and report what is in it")
    parser.add_argument("--preview", type=whole(1), metavar="N", help="show N items of each dataset as the model will get them")
    parser.add_argument("--preview-to", metavar="FOLDER", help="write the clips of the preview and what goes with them into this folder")
    parser.add_argument("--allow-code", action="store_true", help="allow dataset configs to run Python code that they name")
    parser.add_argument("--json", action="store_true", help="print the result for machines")
    add_plugins_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Check every file; returns 0 if all are good, else 2."""
    import_plugins(args.plugins)
    if args.preview_to and not args.preview:
        raise ConfigError([Problem((), "--preview-to has no effect without --preview", "say of how many items: --preview 10")], "arguments")
    results = [check_file(path) for path in args.configs]
    if args.data or args.preview:
        model = next((result for result in results if result.facts.get("kind") == MODEL), None)
        results = [_with_data(result, model, args) if result.facts.get("kind") == DATASET else result for result in results]
    if args.json:
        print(json.dumps([result.to_dict() for result in results], indent=2))
    else:
        _say(results)
    return 2 if any(result.error for result in results) else 0


def check_file(path: str) -> Checked:
    """What a config file describes, or what is wrong with it."""
    from stable_audio_tools.configs.parse import read_json

    try:
        document, text = read_json(path)
        return Checked(path, _dataset(path) if _is_dataset(document) else _model(document, path, text))
    except ConfigError as error:
        return Checked(path, error=error)


def _say(results: Sequence[Checked]) -> None:
    """What is good on standard output, problems on standard error."""
    for result in results:
        if result.facts:
            print("\n".join([*_table(result), *(f"  {line}" for line in result.report)]), flush=True)
        if result.error is not None:
            print(f"error: {result.error}", file=sys.stderr)


def _is_dataset(document: Any) -> bool:
    return isinstance(document, Mapping) and "model_type" not in document and ("dataset_type" in document or "datasets" in document)


def _model(document: Any, path: str, text: str) -> Facts:
    from stable_audio_tools.training.config import parse_run_config

    config = parse_run_config(document, path, text)
    return {
        "kind": MODEL,
        "type": config.model_type,
        "sample_rate": config.sample_rate,
        "sample_size": config.sample_size,
        "audio_channels": config.audio_channels,
        **_latents(config),
        "parameters": _parameters(document),
    }


def _run_config(path: str) -> Any:
    from stable_audio_tools.configs.parse import read_json
    from stable_audio_tools.training.config import parse_run_config

    document, text = read_json(path)
    return parse_run_config(document, path, text)


def _latents(config: Any) -> Facts:
    """The domain that the model works in: channels or codebooks, and samples per frame."""
    body = config.model
    ratio = config.samples_per_frame
    tokens = body.pretransform if config.model_type == "lm" else None
    channels = tokens.num_quantizers if tokens else getattr(body, "latent_dim", None) or body.io_channels
    return {
        "latent_shape": [channels, config.sample_size // ratio],
        **({"codebook_size": tokens.codebook_size} if tokens else {}),
        "downsampling_ratio": ratio,
        "frame_rate": config.sample_rate / ratio,
    }


def _parameters(document: Mapping[str, Any]) -> dict[str, int]:
    """Parameters of each part of the model."""
    import torch

    from stable_audio_tools.models.factory import create_model_from_config

    with torch.device("meta"):
        model = create_model_from_config(document)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    return {name: count for name, count in counts.items() if count}


def _dataset(path: str) -> Facts:
    from stable_audio_tools.data.dataset import parse_dataset_config

    return {"kind": DATASET, "type": parse_dataset_config(path).dataset_type}


def _with_data(checked: Checked, model: Checked | None, args: argparse.Namespace) -> Checked:
    """The same with what the data are; a folder without a usable file is an error, as is what the model does not find in them."""
    read = checked
    try:
        read = _with_report(checked, model) if args.data else checked
        return read if read.error else _with_items(read, model, args)
    except ConfigError as error:
        return replace(read, error=_in_file(error, checked.file))


def _in_file(error: ConfigError, file: str) -> ConfigError:
    """What is wrong with the config itself, shown where it stands in its file; anything else as it is."""
    from stable_audio_tools.configs.parse import read_json

    return ConfigError(error.problems, file, read_json(file)[1]) if error.source in ("dataset", "dataset config") else error


def _with_report(checked: Checked, model: Checked | None) -> Checked:
    from stable_audio_tools.configs.parse import read_json
    from stable_audio_tools.data.check import check_data
    from stable_audio_tools.data.dataset import parse_dataset_config

    rate = model.facts["sample_rate"] if model else None
    config = parse_dataset_config(checked.file)
    report = check_data(config, sample_rate=rate, thorough=True, progress=ScanProgress(checked.file))
    empty = [(index, folder.path) for index, folder in enumerate(report.folders) if not folder.files]
    problems = [Problem(("datasets", index, "path"), f"no usable audio file in {path}") for index, path in empty]
    refusal = ConfigError(problems, checked.file, read_json(checked.file)[1]) if problems else None
    return replace(checked, facts={**checked.facts, "data": report.to_dict()}, report=tuple(report.lines()), error=refusal)


def _with_items(checked: Checked, model: Checked | None, args: argparse.Namespace) -> Checked:
    """The same with items as the model gets them, once they were held against what its conditioners read."""
    from stable_audio_tools.data.dataset import parse_dataset_config
    from stable_audio_tools.data.metadata_module import require_permission
    from stable_audio_tools.data.needs import check_needs
    from stable_audio_tools.data.pre_encoded import PreEncodedDataset
    from stable_audio_tools.data.preview import preview, write_clips
    from stable_audio_tools.training.metadata_needs import metadata_needs

    if model is None:
        if not args.preview:
            return checked
        fix = "name the model config, too: check model.json data.json --preview 5"
        raise ConfigError([Problem((), "a preview needs to know what the model reads, at which rate and length", fix)], "--preview")
    config, run = parse_dataset_config(checked.file), _run_config(model.file)
    if args.preview or args.allow_code:
        require_permission(getattr(config, "code", ()), args.allow_code)
    dataset = config.build(sample_size=run.sample_size, sample_rate=run.sample_rate, audio_channels=run.audio_channels)
    needs = metadata_needs(run)
    check_needs(dataset, needs, run_code=args.allow_code)
    if not args.preview:
        return checked
    if args.preview_to and isinstance(dataset, PreEncodedDataset):
        raise ConfigError([Problem((), "these data are latents, and clips are audio", "leave --preview-to out")], checked.file)
    items = [*preview(dataset, args.preview, needs)]
    if args.preview_to:
        write_clips(items, Path(args.preview_to), run.sample_rate)
    shown = [f"  {line}" for item in items for line in item.lines()]
    facts = {**checked.facts, "preview": [item.to_dict() for item in items]}
    return replace(checked, facts=facts, report=(*checked.report, f"{len(items)} items as the model gets them:", *shown))


def _table(checked: Checked) -> list[str]:
    """The facts of one config, for people."""
    facts = checked.facts
    rows = {"type": facts["type"]}
    if facts["kind"] == MODEL:
        size, rate, channels = facts["sample_size"], facts["sample_rate"], facts["audio_channels"]
        sizes = facts["latent_shape"]
        frames = f"{sizes[1]} frames of {facts['downsampling_ratio']} samples, {facts['frame_rate']:.4g} a second"
        rows["parameters"] = _count(sum(facts["parameters"].values())) + _shares(facts["parameters"])
        rows["clip"] = f"{size} samples at {rate} Hz, {size / rate:.2f} s, {'mono' if channels == 1 else f'{channels} channels'}"
        if "codebook_size" in facts:
            rows["tokens"] = f"{sizes[0]} of {facts['codebook_size']} x {frames}"
        else:
            rows["latents"] = f"{sizes[0]} channels x {frames}"
    good = "" if checked.error else "good "
    return [f"{checked.file}: {good}{facts['kind']}", *(f"  {name:<11} {text}" for name, text in rows.items())]


def _shares(counts: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{name} {_count(count)}' for name, count in counts.items())})" if len(counts) > 1 else ""


def _count(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
