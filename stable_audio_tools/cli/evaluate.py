"""`evaluate --model FILE or RUN_DIR`: measures a trained model on prompts whose combinations it was not trained on.

The figures of a run also go into its folder, as `evaluation.json`, and into its report.

Prompts, real sounds and measurements are fixed; `--seed` is of the model's noise. The same command gives the same report.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_audio_tools.cli.plugins import add_plugins_flag, import_plugins
from stable_audio_tools.cli.values import not_negative, whole
from stable_audio_tools.configs.errors import ConfigError, Problem

if TYPE_CHECKING:
    from torch import Tensor

    from stable_audio_tools.evaluation.scores import EvaluationReport

log = logging.getLogger(__name__)

DATASET = "dataset.json"
RUN = "run.json"
BATCH = 16
STEPS, CFG_SCALE = 50, 1.5  # chosen: where the model's demo settings do not say


@dataclass(frozen=True)
class Sampling:
    """How clips are generated; part of the report's recipe."""

    steps: int
    cfg_scale: float
    seed: int = 0

    @classmethod
    def of(cls, args: argparse.Namespace, config: Mapping[str, Any]) -> Sampling:
        """What was asked for; steps and guidance default to those of the model's demos."""
        demo = (config.get("training") or {}).get("demo") or {}
        scale = next(iter(demo.get("demo_cfg_scales") or ()), CFG_SCALE) if args.cfg_scale is None else args.cfg_scale
        return cls(args.steps or demo.get("demo_steps") or STEPS, float(scale), args.seed)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="FILE|RUN_DIR", help="weights (safetensors), or the folder of a run")
    parser.add_argument(
        "--dataset-config", metavar="FILE", help="the synthetic dataset it was trained on (default: the run's dataset.json)"
    )
    parser.add_argument("--num-prompts", type=whole(2), default=48, metavar="N", help="prompts with a note (default: 48)")
    as_in_demos = "(default: as in the model's demos, else {})".format
    parser.add_argument("--steps", type=whole(1), metavar="N", help=f"sampler steps {as_in_demos(STEPS)}")
    parser.add_argument("--cfg-scale", type=not_negative, metavar="S", help=f"guidance, 1 is none {as_in_demos(CFG_SCALE)}")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of the noise (default: 0)")
    parser.add_argument("--out", metavar="FILE", help="also write the report as JSON")
    parser.add_argument("--save-audio", metavar="DIR", help="also keep the generated clips")
    add_plugins_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    import_plugins(args.plugins)
    import torch

    from stable_audio_tools.models.pretrained import get_pretrained_model
    from stable_audio_tools.report import build_report

    _check_writable(args)
    model, config = get_pretrained_model(args.model)
    _check_kind(config, args.model)
    dataset = _dataset(args.dataset_config, Path(args.model))
    sampling = Sampling.of(args, config)
    keep = Path(args.save_audio) if args.save_audio else None
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    report = evaluate_diffusion_cond(model, config, dataset, sampling, num_prompts=args.num_prompts, save_audio=keep, name=args.model)
    print(report.to_markdown())
    if args.out:
        _write_json(Path(args.out), report.to_dict())
    if (Path(args.model) / RUN).is_file():
        _write_json(Path(args.model) / "evaluation.json", report.to_dict())
        log.info("report: %s", build_report(Path(args.model)))
    return 0


def evaluate_diffusion_cond(
    model: Any,
    config: Mapping[str, Any],
    dataset: Any,
    sampling: Sampling,
    *,
    num_prompts: int = 48,
    save_audio: Path | None = None,
    name: str = "model",
) -> EvaluationReport:
    """Generate clips for held-out prompts of the synthetic dataset and measure them.

    Args:
        model: a `ConditionedDiffusion`, used where it is.
        config: its model config.
        dataset: a `SyntheticConfig`.
        save_audio: folder for the generated clips.
        name: of the model, for the report.
    """
    from stable_audio_tools.evaluation.synthetic import evaluate_synthetic

    def generate(conditioning: list[dict[str, Any]]) -> Tensor:
        audio = _generate(model, conditioning, config["sample_size"], sampling)
        if save_audio is not None:
            _save(save_audio, audio, conditioning, config["sample_rate"])
        return audio

    settings = {"model": name, "steps": sampling.steps, "cfg_scale": sampling.cfg_scale, "noise_seed": sampling.seed}
    return evaluate_synthetic(generate, dataset, config["sample_rate"], config["sample_size"], num_prompts, settings=settings)


def _generate(model: Any, conditioning: list[dict[str, Any]], sample_size: int, sampling: Sampling) -> Tensor:
    import torch

    from stable_audio_tools.diffusion.seeds import derive_seed
    from stable_audio_tools.inference.generation import generate_diffusion_cond

    parts = []
    for start in range(0, len(conditioning), BATCH):
        batch = conditioning[start : start + BATCH]
        log.info("clips %d to %d of %d", start + 1, start + len(batch), len(conditioning))
        seeds = [derive_seed(sampling.seed, start + i) for i in range(len(batch))]  # a clip does not depend on its batch
        part = generate_diffusion_cond(
            model, steps=sampling.steps, cfg_scale=sampling.cfg_scale, conditioning=batch, sample_size=sample_size, seed=seeds
        )
        parts.append(part.cpu())
    return torch.cat(parts)


def _dataset(given: str | None, model: Path) -> Any:
    """The config of the synthetic dataset that the model was trained on; a run's folder has it."""
    from stable_audio_tools.data.dataset import parse_dataset_config
    from stable_audio_tools.data.synthetic import SyntheticConfig

    run = model if (model / DATASET).is_file() else model.resolve().parent.parent if model.is_file() else model.resolve().parent
    path = Path(given) if given else run / DATASET
    if not given and not path.is_file():
        fix = "--dataset-config FILE names the dataset it was trained on"
        raise ConfigError([Problem((), f"this model does not lie in a run's folder with its {DATASET}", fix)], source=f"--model {model}")
    config = parse_dataset_config(str(path))
    if not isinstance(config, SyntheticConfig):
        message = f"dataset_type is {config.dataset_type!r}; evaluate measures against labels, which only 'synthetic' has so far"
        raise ConfigError([Problem(("dataset_type",), message, "--dataset-config with a synthetic dataset")], source=str(path))
    return config


def _check_kind(config: Mapping[str, Any], name: str) -> None:
    kind = config["model_type"]
    if kind != "diffusion_cond":
        raise ConfigError(f"model_type is {kind!r}; evaluate supports 'diffusion_cond' models so far", source=f"--model {name}")


def _check_writable(args: argparse.Namespace) -> None:
    """Before minutes of work: can the results be written where they are wanted?"""
    if args.out:
        folder = Path(args.out).parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            cause = "its folder cannot be written to" if folder.is_dir() else f"there is no folder {folder}"
            raise ConfigError([Problem((), cause, "name a file in a folder that exists and can be written to")], source=f"--out {args.out}")
    if args.save_audio and Path(args.save_audio).exists() and not Path(args.save_audio).is_dir():
        raise ConfigError("this is a file; name a folder", source=f"--save-audio {args.save_audio}")


def _save(folder: Path, audio: Tensor, conditioning: list[dict[str, Any]], sample_rate: int) -> None:
    from stable_audio_tools.audio.io import save_audio

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder: {error.strerror}", source=f"--save-audio {folder}") from None
    for index, (clip, condition) in enumerate(zip(audio, conditioning, strict=True)):
        words = re.sub(r"[^a-z0-9]+", "_", condition["prompt"].lower().replace("#", "s")).strip("_")
        save_audio(folder / f"{index:02d}_{words}.wav", clip, sample_rate)


def _write_json(path: Path, report: Mapping[str, Any]) -> None:
    from stable_audio_tools.models.atomic_file import atomic_file

    try:
        with atomic_file(path) as file:
            file.write((json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"cannot write the report: {error.strerror}", source=f"--out {path}") from None
