"""`export CHECKPOINT --out FILE|DIR`: the weights of a training checkpoint for use: averaged or online, merged, folded, halved.

Also for other programs: stable-audio-tools 0.0.x and diffusers. What was there before is not replaced without `--force`.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_audio_tools.cli.plugins import add_plugins_flag, import_plugins
from stable_audio_tools.configs.errors import ConfigError, Problem

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stable_audio_tools.adapters import Adapter
    from stable_audio_tools.export.write import Target
    from stable_audio_tools.models.checkpoints import LoadedWeights
    from stable_audio_tools.models.pretrained import FoundModel

log = logging.getLogger(__name__)

FORMATS = ("native", "peer", "diffusers")
PRECISIONS = ("fp32", "fp16", "bf16")
AVERAGE = {"ema": True, "online": False}
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
HALF = 2  # bytes
OF_THE_FILE = ("format", "model_config", "crc32")  # texts of a header that are about the file and not the model


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a training checkpoint or an export, or the folder of a run (its newest checkpoint) or of a model",
    )
    add("--out", required=True, metavar="FILE|DIR", help="a .safetensors file with its config inside, or a folder for weights and config")
    add(
        "--format",
        choices=FORMATS,
        default="native",
        help="peer: for stable-audio-tools 0.0.x, also as .ckpt; diffusers: a folder of AutoencoderOobleck (default: native)",
    )
    add("--weights", choices=tuple(AVERAGE), help="of a training checkpoint: averaged, or as last trained (default: ema if there is one)")
    add("--precision", choices=PRECISIONS, default="fp32", help="of the weights; frequencies and filters stay exact (default: fp32)")
    add("--fold-weight-norm", action="store_true", help="write one plain weight for each weight-normalised layer")
    add("--adapter", action="append", default=[], metavar="FILE[:STRENGTH]", help="merge this adapter into the model; repeat it for more")
    add("--model-config", metavar="FILE", help="the model's config (default: that in the checkpoint, or model_config.json beside it)")
    add("--card", action="store_true", help="also write a model card, README.md beside the weights, from what the run knows")
    add("--force", action="store_true", help="replace files that are there")
    add_plugins_flag(parser)


@dataclass(frozen=True)
class Job:
    """What is exported and where to; everything is checked that can be before the model is built.

    config: of the model, as the format has it. adapters: with their strengths. run: the folder of the run that trained it.
    """

    target: Target
    found: FoundModel
    weights: LoadedWeights
    config: Mapping[str, Any]
    adapters: Sequence[tuple[Adapter, float]]
    run: Path | None


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    import_plugins(args.plugins)
    job = _job(args)
    model = _build(args, job)
    state, header = _state(args, model, job.weights.source), _header(args, job.weights)
    try:
        job.target.write(state, job.config, header)
        written = [*job.target.files, *(_write_card(args, job, model, header) if args.card else ())]
    except OSError as error:
        free = f", {_free(job.target.folder) / 1e9:.2f} GB free" if error.errno in NO_SPACE else ""
        print(f"error: cannot write {args.out}: {error.strerror or error}{free}", file=sys.stderr)
        return 1
    log.info("%s", _summary(args, job, state))
    for path in written:
        print(path)
    return 0


# before anything is built


def _job(args: argparse.Namespace) -> Job:
    from stable_audio_tools.adapters import AdapterFile, read_adapter
    from stable_audio_tools.cli.checkpoint_source import CheckpointSource
    from stable_audio_tools.export.write import Target
    from stable_audio_tools.models.pretrained import find_model

    if args.fold_weight_norm and args.format != "native":
        what = f"--format {args.format} is read by a program whose layers are weight-normalised, and would be left without these weights"
        raise ConfigError([Problem((), what, "leave it out; --format native takes it")], "--fold-weight-norm")
    target = Target.of(Path(args.out), args.format)
    source = CheckpointSource.find(Path(args.checkpoint))
    _check_target(args, target, source.weights)
    found = find_model(source.weights, model_config=args.model_config)
    config = _layout_config(args, found)
    if args.fold_weight_norm and not any(key.endswith(".weight_g") for key in found.outline().state_dict()):
        raise ConfigError([Problem((), f"{source.weights} has no weight-normalised layer", "leave it out")], "--fold-weight-norm")
    adapters = [(read_adapter(path), strength) for path, strength in map(AdapterFile.parse, args.adapter)]
    weights = _read(args, found.weights)
    _check_space(args, target, weights)
    return Job(target, found, weights, config, adapters, source.run)


def _check_target(args: argparse.Namespace, target: Target, source: Path) -> None:
    """Whether the files can be written, and replace nothing that is wanted."""
    from stable_audio_tools.export.card import DEMO_FOLDER, FILE_NAME

    place = f"--out {args.out}"
    if any(path.exists() and source.exists() and path.samefile(source) for path in target.files):
        raise ConfigError([Problem((), "this is the checkpoint itself", "name another place")], place)
    wanted = [*target.files, *(target.folder / name for name in (FILE_NAME, DEMO_FOLDER) if args.card)]
    there = [str(path) for path in wanted if path.exists()]
    if there and not args.force:
        raise ConfigError([Problem((), f"there is already {' and '.join(there)}", "--force replaces it; or name another place")], place)
    existing = _standing(target.folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        cause = f"{existing} cannot be written to" if existing.is_dir() else f"{existing} is a file"
        raise ConfigError([Problem((), cause, "name another place")], place)


def _read(args: argparse.Namespace, path: Path) -> LoadedWeights:
    from stable_audio_tools.models.checkpoints import load_weights

    weights = load_weights(path, average=AVERAGE.get(args.weights))
    if args.weights and weights.kind != "training":
        what = f"{path} is no training checkpoint: it has one set of weights"
        raise ConfigError([Problem((), what, "leave it out")], f"--weights {args.weights}")
    return weights


def _layout_config(args: argparse.Namespace, found: FoundModel) -> dict[str, Any]:
    """The model config as the format has it."""
    from stable_audio_tools.export.diffusers import diffusers_config
    from stable_audio_tools.export.peer import peer_document

    source = f"--format {args.format}: {found.weights}"
    if args.format == "diffusers":
        return diffusers_config(found.parsed, source)
    return peer_document(found.config, source) if args.format == "peer" else found.config


def _check_space(args: argparse.Namespace, target: Target, weights: LoadedWeights) -> None:
    most = 8 if args.precision == "fp32" else HALF
    needed = sum(tensor.numel() * min(tensor.element_size(), most) for tensor in weights.state_dict.values())
    if needed > _free(target.folder):
        what = f"needs {needed / 1e9:.2f} GB, and {_free(target.folder) / 1e9:.2f} GB are free"
        raise ConfigError([Problem((), what, "make room, or name another place")], f"--out {args.out}")


def _free(folder: Path) -> int:
    """Bytes free where `folder` is or will be."""
    return shutil.disk_usage(_standing(folder)).free


def _standing(folder: Path) -> Path:
    """The folder itself, or the nearest one above that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


# the weights


def _build(args: argparse.Namespace, job: Job) -> nn.Module:
    """The model as it is exported: loaded, adapters merged, weight norm folded."""
    from stable_audio_tools.adapters import merge_adapter
    from stable_audio_tools.models.checkpoints import CheckpointError, load_into
    from stable_audio_tools.models.utils import remove_weight_norm_from_model

    model = job.found.parsed.build().eval()
    try:
        log.info("%s", load_into(model, job.weights))
    except CheckpointError as error:
        (problem,) = error.problems
        fix = "name the config that they were trained with: --model-config FILE" if "--allow-partial" in problem.fix else problem.fix
        raise ConfigError([replace(problem, fix=fix)], error.source) from None
    for adapter, strength in job.adapters:
        log.info("%s", merge_adapter(model, adapter, strength))
    return remove_weight_norm_from_model(model) if args.fold_weight_norm else model


def _state(args: argparse.Namespace, model: nn.Module, source: str) -> Mapping[str, Tensor]:
    from stable_audio_tools.export.diffusers import diffusers_state
    from stable_audio_tools.export.precision import state_in

    state = state_in(model, args.precision, source)
    return diffusers_state(state) if args.format == "diffusers" else state


def _header(args: argparse.Namespace, weights: LoadedWeights) -> dict[str, str]:
    """Where the weights come from, beside what their own header says."""
    header = {key: text for key, text in weights.metadata.items() if key not in OF_THE_FILE}
    if weights.kind == "training":
        header["weights"] = "ema" if weights.averaged else "online"
        if step := _train_step(Path(weights.source)):
            header["train_step"] = str(step)
    if args.adapter:
        header["adapters"] = json.dumps([*json.loads(header.get("adapters", "[]")), *args.adapter])
    return header


def _train_step(path: Path) -> int:
    from stable_audio_tools.training.checkpoint_io import step_of

    return step_of(path)


def _summary(args: argparse.Namespace, job: Job, state: Mapping[str, Tensor]) -> str:
    which = {"training": "averaged (EMA) weights" if job.weights.averaged else "online weights"}.get(job.weights.kind, "weights")
    numbers = sum(tensor.numel() for tensor in state.values())
    return f"exported {which}: {numbers:,} numbers in {args.precision}, {job.target.weights.stat().st_size / 1e6:.1f} MB"


def _write_card(args: argparse.Namespace, job: Job, model: nn.Module, header: Mapping[str, str]) -> list[Path]:
    from stable_audio_tools.export.card import Exported
    from stable_audio_tools.export.card_files import write_card
    from stable_audio_tools.export.diffusers import alone

    config, run, whole, target = job.found.parsed, job.run, model, job.target
    if args.format == "diffusers" and config.model_type != "autoencoder":  # what the run trained is not what is exported
        config, run, whole, header = alone(job.found.config), None, model.pretransform, {}  # type: ignore[assignment]
    which = {"ema": "averaged (EMA)", "online": "online"}.get(header.get("weights", ""), "")
    facts = [
        ("Parameters", f"{sum(parameter.numel() for parameter in whole.parameters()):,}"),
        ("Train steps", f"{int(header['train_step']):,}" if "train_step" in header else ""),
        ("Weights", ", ".join(filter(None, (which, args.precision, "weight norm folded" if args.fold_weight_norm else "")))),
        ("Merged adapters", ", ".join(Path(name).name for name in json.loads(header.get("adapters", "[]")))),
    ]
    plain_name = target.weights.stem if target.config is None else target.folder.resolve().name
    exported = Exported(
        name=plain_name if run is None else run.name,
        config=config,
        training=job.found.config.get("training") or {},
        weights=target.weights.name,
        folder=target.config is not None,
        diffusers=args.format == "diffusers",
        facts=[(name, text) for name, text in facts if text],
    )
    return write_card(target.folder, exported, run, int(header.get("train_step", 0)))
