"""The flags of `evaluate`, and which of them can act together."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from stable_audio_tools.cli.device import device_name
from stable_audio_tools.cli.plugins import add_plugins_flag
from stable_audio_tools.cli.values import not_negative, number, positive, whole
from stable_audio_tools.configs.errors import ConfigError, Problem

STEPS, CFG_SCALE = 50, 1.5  # chosen: where the model's demo settings do not say
EMBEDDER = "log_mel"
NUM_PROMPTS, NUM_CLIPS, BATCH = 48, 128, 16
OF_MODELS = ("num_prompts", "steps", "cfg_scale", "sampler", "batch_size", "save_audio")
OF_FILES = ("seconds", "paired")
OF_CLIPS = ("reference", "embedder", "num_clips", "loudness", "train_dataset")
"""What an evaluation against labels does not look at: any of these asks for one against clips."""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="FILE|RUN_DIR", help="weights (safetensors), or the folder of a run")
    add("--audio", metavar="FOLDER", help="instead of a model: audio files, such as what another program made")
    add("--dataset-config", metavar="FILE", help="what to compare with: a dataset config (default: the run's dataset.json)")
    add("--reference", metavar="FOLDER", help="what to compare with: a folder of audio files")
    add(
        "--metrics",
        action="append",
        default=[],
        metavar="NAMES",
        help='such as frechet,kernel,statistics; "synthetic" is the notes and instruments of that dataset (default: what fits)',
    )
    add(
        "--embedder",
        action="append",
        default=[],
        metavar="NAME[:PATH]",
        help="what distances are taken in; repeat it for more (default: log_mel)",
    )
    add("--loudness", type=number, metavar="LUFS", help="bring each clip to this loudness before it is embedded (default: as it is)")
    add("--num-clips", type=whole(2), metavar="N", help=f"clips to measure (default: {NUM_CLIPS} of a model, all of a folder)")
    add("--num-prompts", type=whole(2), metavar="N", help=f"synthetic dataset: prompts with a note (default: {NUM_PROMPTS})")
    as_in_demos = "(default: as in the model's demos, else {})".format
    add("--steps", type=whole(1), metavar="N", help=f"sampler steps {as_in_demos(STEPS)}")
    add("--cfg-scale", type=not_negative, metavar="S", help=f"guidance, 1 is none {as_in_demos(CFG_SCALE)}")
    add("--sampler", metavar="NAME", help="default: as in the model's demos, else the one for its objective")
    add("--seed", type=whole(0), default=0, metavar="N", help="of the noise, and of which files of a folder are taken (default: 0)")
    add("--batch-size", type=whole(1), metavar="N", help=f"clips made at once; it changes none of them (default: {BATCH})")
    add(
        "--train-dataset",
        metavar="FILE|FOLDER",
        help="what the model was trained on, to look for copies of it: a dataset config, or a folder",
    )
    add("--seconds", type=positive, metavar="S", help="only the beginning of each file of --audio and --reference")
    add("--paired", action="store_true", help="files of --audio are reconstructions of those of --reference that have the same names")
    add(
        "--device", type=device_name, default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps (default: a GPU if there is one)"
    )
    add("--json", action="store_true", help="print the report as JSON")
    add("--out", metavar="FILE", help="also write the report as JSON")
    add("--save-audio", metavar="DIR", help="also keep the clips that the model makes")
    add("--allow-code", action="store_true", help="allow dataset configs to run Python code that they name")
    add_plugins_flag(parser)


def check_flags(args: argparse.Namespace) -> None:
    """
    Raises:
        ConfigError: flags that exclude each other, or can have no effect; all of them at once.
    """
    args.metrics = [name.strip() for names in args.metrics for name in names.split(",") if name.strip()] or None
    if bool(args.model) == bool(args.audio):
        message = "--model and --audio exclude each other" if args.model else "nothing to evaluate"
        raise ConfigError([Problem((), message, "give --model FILE or RUN_DIR, or --audio FOLDER")], "evaluate")
    if problems := [*_problems(args)]:
        raise ConfigError(problems, "evaluate")


def given(args: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    """Which of these flags were given, as they are typed."""
    return [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) not in (None, [], False)]


def _problems(args: argparse.Namespace) -> Iterator[Problem]:
    if args.dataset_config and args.reference:
        yield Problem((), "--dataset-config and --reference both say what to compare with", "keep one")
    for flag in given(args, OF_MODELS if args.audio else OF_FILES):
        yield Problem((), f"{flag} has no effect with {'--audio' if args.audio else '--model'}", "leave it out")
    if args.paired and not args.reference:
        yield Problem((), "--paired needs --reference, the folder of the originals", "add it, or leave --paired out")
    specs = [spec.partition(":")[0] for spec in args.embedder]
    for twice in sorted({name for name in specs if specs.count(name) > 1}):
        yield Problem((), f"--embedder {twice} is given twice", "keep one: measures are named after their embedder")
