"""`evaluate --audio FOLDER`: files measured by themselves, or beside a folder or a dataset."""

from __future__ import annotations

import argparse
import logging
from pathlib import PurePath

from stable_audio_tools.cli.device import find_device
from stable_audio_tools.cli.evaluate.clips import DatasetClips, audio_files, chosen, read_dataset, read_files, shape_of, training_clips
from stable_audio_tools.cli.evaluate.flags import EMBEDDER
from stable_audio_tools.cli.evaluate.results import Results
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.audio_dir import AudioDirConfig
from stable_audio_tools.data.file_table import AudioFile
from stable_audio_tools.evaluation.clip_sets import Clips
from stable_audio_tools.evaluation.comparison import Comparison
from stable_audio_tools.evaluation.embedders import build_embedder
from stable_audio_tools.evaluation.metrics import choose_metrics, measure

log = logging.getLogger(__name__)


def evaluate_files(args: argparse.Namespace) -> Results:
    """
    Raises:
        ConfigError: folders or datasets that cannot be used, or flags that do not fit them.
    """
    files = chosen(audio_files(args.audio, "--audio"), args.num_clips, args.seed)
    reference: Clips | None = None
    if args.paired:
        files, originals = _pairs(files, audio_files(args.reference, "--reference"), args)
        reference = read_files(originals, args.seconds)
    elif args.reference or args.dataset_config:
        reference = _reference(args, files[0])
    prompts = [file.metadata["prompt"] for file in files if isinstance(file.metadata.get("prompt"), str)]
    facts = {"audio": args.audio, "seconds": args.seconds, "compared_with": args.reference or args.dataset_config, "seed": args.seed}
    recipe = {key: value for key, value in facts.items() if value is not None}
    comparison = Comparison(
        generated=read_files(files, args.seconds),
        reference=reference,
        paired=args.paired,
        prompts=prompts if prompts and len(prompts) == len(files) and not args.paired else None,
        training=training_clips(args.train_dataset, shape_of(args, files[0]), allow_code=args.allow_code) if args.train_dataset else None,
        embedders=[build_embedder(spec, device=str(find_device(args.device))) for spec in args.embedder or [EMBEDDER]],
        loudness=args.loudness,
        recipe=recipe,
    )
    names = choose_metrics(args.metrics, comparison.needs_met)
    log.info("measuring %d files: %s", len(files), ", ".join(names))
    return Results({**recipe, "clips": len(files)}, measure(names, comparison))


def _reference(args: argparse.Namespace, first: AudioFile) -> Clips:
    """What files are compared with, as many of it as there are unless `--num-clips` says less."""
    if args.reference:
        return read_files(chosen(audio_files(args.reference, "--reference"), args.num_clips, args.seed), args.seconds)
    config = read_dataset(args.dataset_config, allow_code=args.allow_code)
    if isinstance(config, AudioDirConfig):
        found = [file for item in config.datasets for file in audio_files(item.path, "--dataset-config")]
        return read_files(chosen(found, args.num_clips, args.seed), args.seconds)
    size, rate, channels = shape_of(args, first)
    dataset = config.build(sample_size=size, sample_rate=rate, audio_channels=channels)
    return DatasetClips(dataset, rate, min(len(dataset), args.num_clips or len(dataset)))


def _pairs(files: list[AudioFile], originals: list[AudioFile], args: argparse.Namespace) -> tuple[list[AudioFile], list[AudioFile]]:
    """Files and the originals of the same names; what the files are called by is their path in the folder, without the extension.

    Raises:
        ConfigError: a file has no original, or one of another rate or number of channels.
    """
    by_name = {str(PurePath(file.relpath).with_suffix("")): file for file in originals}
    names = [str(PurePath(file.relpath).with_suffix("")) for file in files]
    if missing := [file.relpath for file, name in zip(files, names, strict=True) if name not in by_name]:
        message = f"{len(missing)} of {len(files)} files have no original of the same name in {args.reference}: {', '.join(missing[:3])}"
        raise ConfigError([Problem((), message, "name them alike, or leave --paired out")], f"--audio {args.audio}")
    found = [by_name[name] for name in names]
    if unlike := [(file, other) for file, other in zip(files, found, strict=True) if _shape(file) != _shape(other)]:
        (file, other), count = unlike[0], len(unlike)
        message = f"{count} of {len(files)} files are unlike their originals: {file.relpath} has {_shape(file)}, not {_shape(other)}"
        raise ConfigError([Problem((), message, "convert them, or leave --paired out")], f"--audio {args.audio}")
    return files, found


def _shape(file: AudioFile) -> str:
    channels = file.info.channels
    return f"{channels} channel{'s' if channels > 1 else ''} at {file.info.sample_rate} Hz"
