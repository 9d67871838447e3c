"""Does a model make what its prompt says? Prompts whose combinations training never saw, measured on the sound alone.

The same measurements are made of real synthetic sounds of the same prompts (what could be reached), of white noise, and
of real sounds against each other's prompts (what chance gives).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.synthetic import Combination, Split, SyntheticConfig, SyntheticDataset
from stable_audio_tools.diffusion.seeds import generator_for

from .listening import Heard, Labels, Listener
from .scores import MODEL, NOISE, REAL, SHUFFLED, TOLERANCE_CENTS, EvaluationReport, Scores, score

CALIBRATION_SOUNDS = 100  # of each instrument
NOISE_LIKE_REPEATS = 4  # of each noise-like prompt: there are few of them
_NOISE_RMS = 0.1
_CHOICE, _CALIBRATION, _WHITE_NOISE = range(3)  # random streams of one evaluation seed
_SOUNDS_A_SEED, _FIRST_CALIBRATION_SOUND = 1_000_000, 500_000

Generate = Callable[[list[dict[str, Any]]], Tensor]


def evaluate_synthetic(
    generate: Generate,
    config: SyntheticConfig,
    sample_rate: int,
    sample_size: int,
    num_prompts: int = 48,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> EvaluationReport:
    """Generate sounds for held-out prompts and measure them.

    Where the config holds nothing out, all its prompts are used, and the report says that they were trained on.

    Args:
        generate: called once with the metadata of every clip wanted (`prompt`, `seconds_start`, `seconds_total`, ...);
            returns (B, C, T) audio in that order. Clips longer than `sample_size` are cut.
        config: of the synthetic dataset that the model was trained on.
        num_prompts: prompts with a note, spread evenly over the instruments; noise-like ones come on top.
        seed: names the prompts and the real sounds. No sound of a training set is among these, whatever its seed.
        settings: how the model was run, for the report's recipe.

    Raises:
        ConfigError: the dataset has no instrument with a pitch, or its sounds do not fit the clip.
        ValueError: `num_prompts` is below 2, or `generate` returned another number of clips.
    """
    if num_prompts < 2:
        raise ValueError(f"num_prompts is {num_prompts}; at least 2 are needed")
    split: Split = "held_out" if config.combinations("held_out") else "all"
    sounds, every = (SyntheticDataset(config.with_split(part), sample_size, sample_rate, 1) for part in (split, "all"))
    asked = choose_prompts(sounds.combinations, num_prompts, seed)
    listener = fit_listener(every, sample_rate, seed)
    real, labels = _real_sounds(sounds, [*asked, *_noise_like(every.combinations)], seed)
    noise = _NOISE_RMS * torch.randn(real.shape, generator=generator_for(seed, _WHITE_NOISE))
    made = _generated(generate, labels, sample_size)
    heard = {MODEL: listener.listen(made), REAL: listener.listen(real), NOISE: listener.listen(noise)}
    recipe = {
        "prompts": "combinations held out of training" if split == "held_out" else "combinations seen in training",
        "distinct": len(set(asked)),
        "seed": seed,
        "sample_rate": sample_rate,
        "sample_size": sample_size,
        "tolerance_cents": TOLERANCE_CENTS,
        "calibration_sounds": CALIBRATION_SOUNDS * len(_by_instrument(every.combinations)),
    }
    return _report(recipe | dict(settings or {}), heard, labels, listener)


def choose_prompts(combinations: Sequence[Combination], count: int, seed: int) -> list[Combination]:
    """Pitched combinations in random order, instruments in turn as long as each has one left; repeated if there are too few."""
    groups = _by_instrument([c for c in combinations if c.midi is not None])
    if not groups:
        fix = "evaluate with a config whose instruments have one that plays notes"
        raise ConfigError(
            [Problem(("instruments",), "no instrument with a pitch, so there is no note to ask for", fix)], "synthetic dataset"
        )
    orders = [_shuffled(group, seed, place) for place, group in enumerate(groups.values())]
    in_turn = [c for row in zip_longest(*orders) for c in row if c is not None]
    return [in_turn[i % len(in_turn)] for i in range(count)]


def fit_listener(every: SyntheticDataset, sample_rate: int, seed: int) -> Listener:
    """What to measure with, fitted on sounds of all combinations, which are among neither training nor the prompts' own."""
    groups = [_shuffled(group, seed, place) for place, group in enumerate(_by_instrument(every.combinations).values())]
    chosen = [group[i % len(group)] for group in groups for i in range(CALIBRATION_SOUNDS)]
    first = seed * _SOUNDS_A_SEED + _FIRST_CALIBRATION_SOUND
    made = [every.sound(combination, first + i) for i, combination in enumerate(chosen)]
    return Listener.fit([audio for audio, _ in made], [labels for _, labels in made], sample_rate, generator_for(seed, _CALIBRATION))


def _noise_like(combinations: Sequence[Combination]) -> list[Combination]:
    return [c for c in combinations if c.midi is None] * NOISE_LIKE_REPEATS


def _by_instrument(combinations: Sequence[Combination]) -> dict[str, list[Combination]]:
    groups: dict[str, list[Combination]] = {}
    for combination in combinations:
        groups.setdefault(combination.instrument, []).append(combination)
    return groups


def _shuffled(group: Sequence[Combination], seed: int, place: int) -> list[Combination]:
    order = torch.randperm(len(group), generator=generator_for(seed, _CHOICE, place))
    return [group[i] for i in order.tolist()]


def _real_sounds(sounds: SyntheticDataset, asked: Sequence[Combination], seed: int) -> tuple[Tensor, list[dict[str, Any]]]:
    made = [sounds.sound(combination, seed * _SOUNDS_A_SEED + i) for i, combination in enumerate(asked)]
    return torch.stack([audio for audio, _ in made]), [labels for _, labels in made]


def _generated(generate: Generate, labels: list[dict[str, Any]], sample_size: int) -> Tensor:
    audio = generate(labels)
    if audio.ndim != 3 or len(audio) != len(labels):
        raise ValueError(f"generate returned audio of shape {tuple(audio.shape)}; expected ({len(labels)}, C, T)")
    return audio[..., :sample_size].detach().cpu()


def _report(recipe: dict[str, Any], heard: Mapping[str, Heard], labels: Sequence[Labels], listener: Listener) -> EvaluationReport:
    def scores(source: str, clips: Sequence[int], *, shuffled: bool = False) -> Scores:
        return score(heard[source].take(clips), [labels[i] for i in clips], listener, shuffled=shuffled)

    with_note = [i for i, label in enumerate(labels) if label["midi"] is not None]
    without = [i for i, label in enumerate(labels) if label["midi"] is None]
    instruments = dict.fromkeys(labels[i]["instrument"] for i in with_note)
    return EvaluationReport(
        recipe,
        pitched={source: scores(source, with_note) for source in heard} | {SHUFFLED: scores(REAL, with_note, shuffled=True)},
        unpitched={source: scores(source, without) for source in heard} if without else {},
        by_instrument={name: scores(MODEL, [i for i in with_note if labels[i]["instrument"] == name]) for name in instruments},
    )
