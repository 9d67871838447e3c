"""From what was asked for to the clips to make, with every mistake told before a weight is read."""

from __future__ import annotations

import argparse
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stable_audio_tools.audio.io import probe
from stable_audio_tools.audio.resample import resampled_length
from stable_audio_tools.configs.errors import ConfigError, Problem

from .conditions import ConditionReader
from .makers import MAKERS, Clip, Maker, Progress
from .sounds import SoundCondition, read_sounds
from .wishes import Wish

log = logging.getLogger(__name__)

MOST_SEEDS = 2**31


@dataclass(frozen=True)
class Plan:
    """What is to be made, and how.

    rate: Hz of the clips. weights: what tells the model's file from others. sounds: conditions that are sounds, by metadata key.
    """

    clips: tuple[Clip, ...]
    maker: Maker
    rate: int
    weights: str
    sounds: Mapping[str, SoundCondition]

    def make(self, model: nn.Module, clips: Sequence[Clip], progress: Progress) -> Tensor:
        """One of the batches, (B, C, at least what is kept)."""
        return self.maker.make(model, [read_sounds(clip, self.sounds, self.rate) for clip in clips], progress)

    def batches(self, size: int, clips: Sequence[Clip]) -> Iterator[list[Clip]]:
        """Some of the clips, at most `size` of one kind at a time: those of another length, or with a negative, are another's."""
        kinds: dict[Any, list[Clip]] = {}
        for clip in clips:
            kinds.setdefault(clip.source or (clip.length, clip.negative is None), []).append(clip)
        for alike in kinds.values():
            for start in range(0, len(alike), size):
                yield alike[start : start + size]


def plan(args: argparse.Namespace, wishes: Sequence[Wish], model: Any, config: Mapping[str, Any], weights: str) -> Plan:
    """All clips of a command.

    Args:
        model: without weights is enough.
        weights: what tells its file from others, see `settings.fingerprint`.

    Raises:
        ConfigError: whatever is wrong with what was asked for.
    """
    demo = (config.get("training") or {}).get("demo") or {}
    maker = MAKERS[config["model_type"]].of(args, model, demo)
    reader = ConditionReader(model, config)
    clips = _reconstructions(args, model) if args.reconstruct else _generated(args, wishes, reader, config, maker)
    return Plan(tuple(clips), maker, model.sample_rate, weights, reader.sounds)


def _reconstructions(args: argparse.Namespace, model: Any) -> Iterator[Clip]:
    seed = _first_seed(args.seed)
    for path in args.reconstruct:
        info = probe(path)
        length = resampled_length(info.frames, info.sample_rate, model.sample_rate)
        yield Clip({}, None, seed, length, length, f"{Path(path).stem}_reconstructed", path)


def _generated(
    args: argparse.Namespace, wishes: Sequence[Wish], reader: ConditionReader, config: Mapping[str, Any], maker: Maker
) -> Iterator[Clip]:
    rate, trained = config["sample_rate"], config["sample_size"]
    source = f"--model {args.model}"
    keep = [trained if wish.seconds is None else max(1, round(wish.seconds * rate)) for wish in wishes]
    _check_given_audio(args, wishes, [samples / rate for samples in keep])
    if max(keep) > trained:
        log.warning("%g s are longer than the clips of %g s that the model was trained on", max(keep) / rate, trained / rate)
    metadata = reader.metadata(wishes, [samples / rate for samples in keep], source)
    _check_negatives(wishes, reader, maker.settings.get("cfg_scale"))
    # A diffusion model that is told how long a sound is was trained on whole clips that end in silence, so it gets one.
    whole = reader.knows_length and config["model_type"] != "lm"
    first = _first_seed(args.seed)
    for index, (wish, item, samples) in enumerate(zip(wishes, metadata, keep, strict=True)):
        negative = None if wish.negative_prompt is None else item | {"prompt": wish.negative_prompt}
        seed = first + index if wish.seed is None else wish.seed
        yield Clip(item, negative, seed, max(samples, trained) if whole else samples, samples, wish.name)


def _first_seed(asked: int | None) -> int:
    return secrets.randbelow(MOST_SEEDS) if asked is None else asked


def _check_negatives(wishes: Sequence[Wish], reader: ConditionReader, cfg_scale: float | None) -> None:
    problems = []
    for wish in wishes:
        if wish.negative_prompt is None:
            continue
        place = f"{wish.place}: negative_prompt" if wish.place else "--negative-prompt"
        if not reader.has_prompt:
            problems.append(Problem((), f"{place}: the model has no prompt to guide away from"))
        elif cfg_scale == 1:
            problems.append(Problem((), f"{place}: acts through guidance, and --cfg-scale 1 is none", "choose another --cfg-scale"))
    if problems:
        raise ConfigError(dict.fromkeys(problems))


def _check_given_audio(args: argparse.Namespace, wishes: Sequence[Wish], seconds: Sequence[float]) -> None:
    """Whether every clip has room for what is kept, and ends behind what is made anew."""
    kept = probe(args.continue_from).seconds if args.continue_from else 0.0
    problems = []
    for wish, length in zip(wishes, seconds, strict=True):
        place = f"{wish.place}: " if wish.place else ""
        for start, end in args.mask:
            if start >= length:
                problems.append(Problem((), f"{place}--mask {start:g}:{end:g}: the clip ends at {length:g} s", "--seconds makes it longer"))
        if kept >= length:
            message = f"{place}--continue-from {args.continue_from}: it lasts {kept:g} s, and the clip with it {length:g} s"
            problems.append(Problem((), message, f"--seconds says how long both are together: more than {kept:g}"))
    if problems:
        raise ConfigError(dict.fromkeys(problems))
