"""Which lengths of audio a run can train on, beside its sample_size."""

from __future__ import annotations

import math

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.buckets import LengthGrid
from stable_audio_tools.training.config import AnyRun, parse_run_config

GROWTH = 1.25  # of the lengths that are tried, chosen: the shortest that fits is found within a quarter
PARTS = 256  # of sample_size that are tried, chosen


def clip_lengths(run: AnyRun) -> LengthGrid:
    """The lengths that fit the model, its losses, discriminators and teachers: those that the config could have as its sample_size."""
    document = run.model_dump(mode="json", exclude_unset=True)
    frames = math.lcm(run.length_multiple, run.samples_per_frame)
    multiple = run.length_multiple if run.sample_size % frames else frames
    shortest = next(length for length in _tried(multiple, run.sample_size) if length == run.sample_size or _fits(document, length))
    following = range(shortest, run.sample_size, multiple)[1:4]
    if all(_fits(document, length) for length in following):
        return LengthGrid(multiple, shortest)
    # Something else wants multiples, and both of these are; so is what divides both.
    return LengthGrid(math.gcd(shortest, run.sample_size), shortest)


def _tried(multiple: int, longest: int) -> list[int]:
    """Multiples that grow by `GROWTH`, and those that divide `longest`, which is a multiple of all that is asked for."""
    growing: list[int] = []
    while (length := math.ceil(GROWTH * growing[-1] / multiple) * multiple if growing else multiple) < longest:
        growing.append(length)
    dividing = [longest // parts for parts in range(1, PARTS + 1) if longest % (parts * multiple) == 0]
    return sorted({*growing, *dividing, longest})


def _fits(document: dict[str, object], length: int) -> bool:
    try:
        parse_run_config({**document, "sample_size": length})
    except ConfigError:
        return False
    return True
