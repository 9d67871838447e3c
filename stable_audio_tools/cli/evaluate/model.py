"""`evaluate --model`: what a model of any type makes, beside the sounds of a dataset or a folder."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.device import find_device
from stable_audio_tools.cli.evaluate.clip_evaluation import LABELS, ClipEvaluation
from stable_audio_tools.cli.evaluate.clips import folder_config, make_folder, read_dataset
from stable_audio_tools.cli.evaluate.flags import BATCH, CFG_SCALE, NUM_PROMPTS, OF_CLIPS, STEPS, given
from stable_audio_tools.cli.evaluate.labelled import evaluate_labelled
from stable_audio_tools.cli.evaluate.results import Results
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.synthetic import SyntheticConfig
from stable_audio_tools.diffusion.samplers import find_sampler
from stable_audio_tools.evaluation.model_clips import Sampling, has_guidance, has_steps, reconstructs
from stable_audio_tools.evaluation.scores import EvaluationReport
from stable_audio_tools.models.pretrained import FoundModel, find_model

log = logging.getLogger(__name__)
DATASET = "dataset.json"
CLIPS = "clips"  # the folder in which clips are kept where those that are held against labels are kept too, in one of their own


def evaluate_model(args: argparse.Namespace) -> Results:
    """
    Raises:
        ConfigError: a model or data that cannot be used, or flags that do not fit them; before weights are read.
    """
    found = find_model(args.model)
    device, sampling = find_device(args.device), _sampling(args, found)
    dataset = _dataset(args)
    labelled = _asks_for_labels(args, found, dataset)
    clips = None
    if _asks_for_clips(args, labelled=labelled):
        clips = ClipEvaluation(args, found.parsed, dataset, compared_with=_reference_name(args), device=device)
    folder = Path(args.save_audio) if args.save_audio else None
    if folder is not None:
        make_folder(folder)
    model: Any = found.load().to(device)
    folders = {part: folder / part if folder and labelled and clips else folder for part in (LABELS, CLIPS)}
    report = _labelled(args, model, found, dataset, sampling, folders[LABELS]) if labelled else None
    measures = [] if clips is None else clips.measure(model, sampling, folders[CLIPS])
    return Results({} if clips is None else {**clips.recipe(sampling), "clips": clips.count}, measures, report)


def _asks_for_labels(args: argparse.Namespace, found: FoundModel, dataset: Any) -> bool:
    """Whether the model's clips are held against the labels of the synthetic dataset.

    Raises:
        ConfigError: they cannot be, and it was asked for, or settings of it were given.
    """
    kind = found.config["model_type"]
    possible = isinstance(dataset, SyntheticConfig) and kind == "diffusion_cond"
    wanted = LABELS in args.metrics if args.metrics else possible
    if wanted and not possible:
        is_kind = f"dataset_type is {dataset.dataset_type!r}" if kind == "diffusion_cond" else f"model_type is {kind!r}"
        message = f"{is_kind}; labels are known of the synthetic dataset, and asked for with diffusion_cond models"
        raise ConfigError([Problem((), message, f"leave {LABELS!r} out")], "--metrics")
    if args.num_prompts is not None and not wanted:
        what = "has no effect: nothing is measured against the labels of the synthetic dataset"
        raise ConfigError([Problem((), what, "--num-clips is the number of clips to compare")], "--num-prompts")
    return wanted


def _asks_for_clips(args: argparse.Namespace, *, labelled: bool) -> bool:
    """Whether the model's clips are held against those of the data.

    Raises:
        ConfigError: they are not, and settings of it were given.
    """
    flags = given(args, OF_CLIPS)
    if args.metrics != [LABELS]:
        return not labelled or bool(args.metrics or flags)
    if flags:
        problems = [Problem((), f"{flag} has no effect on what is measured against labels", "leave it out") for flag in flags]
        raise ConfigError(problems, f"--metrics {LABELS}")
    return False


def _labelled(
    args: argparse.Namespace, model: Any, found: FoundModel, dataset: SyntheticConfig, sampling: Sampling, folder: Path | None
) -> EvaluationReport:
    return evaluate_labelled(
        model,
        dataset,
        sampling,
        sample_size=found.parsed.sample_size,
        num_prompts=args.num_prompts or NUM_PROMPTS,
        batch_size=args.batch_size or BATCH,
        save_audio=folder,
        name=args.model,
    )


def _sampling(args: argparse.Namespace, found: FoundModel) -> Sampling:
    """What was asked for; the rest is as in the model's demos.

    Raises:
        ConfigError: the model has no use for a flag, or no such sampler.
    """
    demo = (found.config.get("training") or {}).get("demo") or {}
    steps, guidance = has_steps(found.parsed), has_guidance(found.parsed)
    sampler = steps and not reconstructs(found.parsed)
    idle = {"--steps": args.steps is not None and not steps, "--cfg-scale": args.cfg_scale is not None and not guidance}
    idle["--sampler"] = args.sampler is not None and not sampler
    if problems := [Problem((), f"{flag} has no effect on this model", "leave it out") for flag, is_idle in idle.items() if is_idle]:
        raise ConfigError(problems, f"--model {args.model}")
    name = (args.sampler or demo.get("sampler_type")) if sampler else None
    if args.sampler:
        outline: Any = found.outline()
        find_sampler(args.sampler, outline.objective)
    default = 1.0 if found.config["model_type"] == "lm" else CFG_SCALE  # its demos' own default
    scale = args.cfg_scale if args.cfg_scale is not None else next(iter(demo.get("demo_cfg_scales") or ()), default)
    return Sampling(
        steps=(args.steps or demo.get("demo_steps") or STEPS) if steps else None,
        cfg_scale=float(scale) if guidance else None,
        sampler=name,
        seed=args.seed,
    )


def _dataset(args: argparse.Namespace) -> Any:
    """What to compare with: as the flags say, else the data that a run's folder names."""
    if args.reference:
        return folder_config(args.reference)
    if args.dataset_config:
        return read_dataset(args.dataset_config, allow_code=args.allow_code)
    path = _run_dataset(Path(args.model))
    if not path.is_file():
        fix = "--dataset-config FILE or --reference FOLDER says what to compare with"
        what = f"this model does not lie in a run's folder with its {DATASET}"
        raise ConfigError([Problem((), what, fix)], source=f"--model {args.model}")
    return read_dataset(str(path), allow_code=args.allow_code)


def _run_dataset(model: Path) -> Path:
    if (model / DATASET).is_file():
        return model / DATASET
    return (model.resolve().parent.parent if model.is_file() else model.resolve().parent) / DATASET


def _reference_name(args: argparse.Namespace) -> str:
    return args.reference or args.dataset_config or f"the run's {DATASET}"
