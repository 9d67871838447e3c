"""Does a model make what its prompt says? Prompts whose combinations training never saw, measured on the sound alone.

The same measurements are made of real synthetic sounds of the same prompts (what could be reached), of white noise, and
of real sounds against each other's prompts (what chance gives).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from stable_audio_tools.diffusion.seeds import generator_for

from .listening import Heard, Labels, Listener
from .scores import MODEL, NOISE, REAL, SHUFFLED, TOLERANCE_CENTS, EvaluationReport, Scores, score

CALIBRATION_SOUNDS = 100  # of each instrument
NOISE_LIKE_REPEATS = 4  # of each noise-like prompt: there are few of them
_NOISE_RMS = 0.1
# Random streams and sound numbers of one evaluation seed.
_CHOICE, _CALIBRATION, _WHITE_NOISE = range(3)
_SOUNDS_A_SEED = 1_000_000

Generate = Callable[[list[dict[str, Any]]], Tensor]


class Asked(Protocol):
    """What a prompt says."""

    @property
    def instrument(self) -> str: ...
    @property
    def midi(self) -> int | None: ...
    @property
    def loudness(self) -> str: ...


class LabelledSounds(Protocol):
    """A dataset that can make a sound for any of its combinations; `data.synthetic.SyntheticDataset` is one."""

    @property
    def combinations(self) -> Sequence[Asked]: ...
    def sound(self, combination: Any, index: int) -> tuple[Tensor, dict[str, Any]]: ...


class SoundsConfig(Protocol):
    """`data.synthetic.SyntheticConfig`, as far as it matters here."""

    @property
    def hold_out(self) -> float: ...
    def with_split(self, split: Literal["held_out", "all"]) -> SoundsConfig: ...
    def build(self, *, sample_size: int, sample_rate: int, audio_channels: int) -> LabelledSounds: ...


def evaluate_synthetic(
    generate: Generate,
    config: SoundsConfig,
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
        ValueError: `num_prompts` is below 2, or `generate` returned another number of clips.
    """
    if num_prompts < 2:
        raise ValueError(f"num_prompts is {num_prompts}; at least 2 are needed")
    split: Literal["held_out", "all"] = "held_out" if config.hold_out else "all"
    clip = {"sample_size": sample_size, "sample_rate": sample_rate, "audio_channels": 1}
    sounds, every = config.with_split(split).build(**clip), config.with_split("all").build(**clip)
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


def choose_prompts(combinations: Sequence[Asked], count: int, seed: int) -> list[Asked]:
    """Pitched combinations in random order, every instrument as often as the others; repeated if there are too few."""
    groups = _by_instrument([c for c in combinations if c.midi is not None])
    if not groups:
        raise ValueError("no instrument with a pitch to ask for; name one in the dataset config")
    orders = [_shuffled(group, seed, place) for place, group in enumerate(groups.values())]
    return [orders[i % len(orders)][i // len(orders) % len(orders[i % len(orders)])] for i in range(count)]


def fit_listener(every: LabelledSounds, sample_rate: int, seed: int) -> Listener:
    """What to measure with, fitted on sounds of all combinations, which are among neither training nor the prompts' own."""
    groups = [_shuffled(group, seed, place) for place, group in enumerate(_by_instrument(every.combinations).values())]
    chosen = [group[i % len(group)] for group in groups for i in range(CALIBRATION_SOUNDS)]
    made = [every.sound(combination, seed * _SOUNDS_A_SEED + i) for i, combination in enumerate(chosen)]
    return Listener.fit([audio for audio, _ in made], [labels for _, labels in made], sample_rate, generator_for(seed, _CALIBRATION))


def _noise_like(combinations: Sequence[Asked]) -> list[Asked]:
    return [c for c in combinations if c.midi is None] * NOISE_LIKE_REPEATS


def _by_instrument(combinations: Sequence[Asked]) -> dict[str, list[Asked]]:
    groups: dict[str, list[Asked]] = {}
    for combination in combinations:
        groups.setdefault(combination.instrument, []).append(combination)
    return groups


def _shuffled(group: Sequence[Asked], seed: int, place: int) -> list[Asked]:
    order = torch.randperm(len(group), generator=generator_for(seed, _CHOICE, place))
    return [group[i] for i in order.tolist()]


def _real_sounds(sounds: LabelledSounds, asked: Sequence[Asked], seed: int) -> tuple[Tensor, list[dict[str, Any]]]:
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
