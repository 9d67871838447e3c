"""The `synthetic` dataset: labelled instrument sounds made on the fly, with a prompt and the true values.

Item `index` is a function of the config's seed, the split and `index` alone: the same whatever the batch, the order,
the worker or the platform (there to the rounding of float32). Some combinations of instrument, note and loudness can be
held out of training, by a hash that depends on nothing but the combination; `split: "held_out"` gives these.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem

from .instruments import ALL_INSTRUMENTS, INSTRUMENTS, InstrumentName
from .notes import midi_to_hz, midi_to_note, parse_notes
from .synthesis import BAND_LIMIT, Array, Draws, level, render

Loudness = Literal["soft", "medium", "loud"]
Split = Literal["train", "held_out", "all"]
Seconds = Annotated[float, Field(ge=0.05)]

# chosen: 7 dB apart, so that the words never overlap, and the loudest peak of any instrument stays below full scale.
LEVELS_DB: dict[Loudness, float] = {"soft": -29.0, "medium": -22.0, "loud": -15.0}
_LEVEL_SPREAD_DB = 1.2
_DETUNE_CENTS = 6.0
_MAX_PAN = 0.3
_PLAIN = "{a_name} playing {note}, {loudness}"
_VARIED = (
    _PLAIN,
    "{a_name} plays {note}, {loudness}",
    "{note} on {a_name}, {loudness}",
    "{loudness}, the note {note} from {a_name}",
    "{a_name}, {loudness}, note {note}",
)
_PLAIN_NOISE = "{a_name}, {loudness}"
_VARIED_NOISE = (_PLAIN_NOISE, "{loudness}, {a_name}", "the sound of {a_name}, {loudness}")
_STREAMS: dict[Split, int] = {"train": 0, "held_out": 1, "all": 2}
_NAMED_STREAM = 16  # added for sounds asked for by combination, so that they repeat no item


class Combination(NamedTuple):
    """What a prompt says. midi is None for instruments without a pitch."""

    instrument: InstrumentName
    midi: int | None
    loudness: Loudness

    def is_held_out(self, share: float) -> bool:
        """By a hash of the combination: the same in every run, and a larger share holds out the same ones and more."""
        digest = hashlib.blake2b(f"{self.instrument}/{self.midi}/{self.loudness}".encode(), digest_size=8).digest()
        return self.midi is not None and int.from_bytes(digest, "big") < share * 2**64


class SyntheticConfig(StrictModel):
    """Sounds made on the fly: no files, no download, every label true."""

    dataset_type: Literal["synthetic"] = "synthetic"
    seed: int = Field(0, ge=0, description="names the whole pool of sounds")
    num_items: int = Field(10_000, gt=0, description="sounds in the pool, which is one epoch")
    instruments: tuple[InstrumentName, ...] = ALL_INSTRUMENTS
    notes: str | tuple[str, ...] = Field("A3-A5", description='note names and chromatic ranges, such as "A3-A5" or ["C4", "E4", "A4-A5"]')
    loudness: tuple[Loudness, ...] = get_args(Loudness)
    seconds: Seconds | tuple[Seconds, Seconds] | None = Field(
        None, description="length of the sound, or [shortest, longest]; it lies anywhere in the crop. Left out: the whole crop"
    )
    hold_out: float = Field(0.15, ge=0, lt=1, description="share of the pitched combinations that training never hears")
    split: Split = Field("train", description="train: without what is held out; held_out: only that; all: everything")
    prompts: Literal["plain", "varied"] = Field("plain", description="plain: one wording; varied: several")

    @model_validator(mode="after")
    def _sounds_can_be_made(self) -> Self:
        for key in ("instruments", "loudness"):
            names = getattr(self, key)
            if not names:
                raise ValueError(f"{key} is empty; name at least one, or leave the key out for all")
            if len(set(names)) < len(names):
                raise ValueError(f"{key} lists a name twice: {', '.join(names)}; a name counts once")
        if isinstance(self.seconds, tuple) and self.seconds[0] > self.seconds[1]:
            raise ValueError(f"seconds is [{self.seconds[0]}, {self.seconds[1]}]; write the shorter length first")
        parse_notes(self.notes)
        self._every_part_occurs()
        return self

    def _every_part_occurs(self) -> None:
        """Training must meet each instrument, note and word, or holding out would test the unknown, not the combination."""
        given = self.combinations(self.split)
        if not given:
            raise ValueError(
                f"hold_out {self.hold_out} holds nothing out, so split {self.split!r} is empty; raise hold_out or name more notes"
            )
        if self.split == "train":
            every = self.combinations("all")
            for what, place in (("instrument", 0), ("note", 1), ("loudness", 2)):
                lost = {combination[place] for combination in every} - {combination[place] for combination in given}
                if lost:
                    name = min(midi_to_note(part) if isinstance(part, int) else str(part) for part in lost)
                    raise ValueError(
                        f"hold_out {self.hold_out} leaves no training sound with the {what} {name}; lower it or name more notes"
                    )

    def combinations(self, split: Split) -> tuple[Combination, ...]:
        """What the prompts of a split can say, in a fixed order."""
        midis = parse_notes(self.notes)
        every = (
            Combination(instrument, midi, loudness)
            for instrument in self.instruments
            for midi in (midis if INSTRUMENTS[instrument].pitched else (None,))
            for loudness in self.loudness
        )
        return tuple(c for c in every if split == "all" or c.is_held_out(self.hold_out) == (split == "held_out"))

    def with_split(self, split: Split) -> SyntheticConfig:
        return SyntheticConfig.model_validate(self.model_dump() | {"split": split})

    def held_out(self) -> SyntheticConfig | None:
        """The held-out part as a validation set, with as many items as it has combinations; None if nothing is held out."""
        count = len(self.combinations("held_out"))
        return SyntheticConfig.model_validate(self.model_dump() | {"split": "held_out", "num_items": count}) if count else None

    def build(self, *, sample_size: int, sample_rate: int, audio_channels: int = 2) -> SyntheticDataset:
        return SyntheticDataset(self, sample_size, sample_rate, audio_channels)


class SyntheticDataset(Dataset):
    """Items are `(audio (C, T) float32, metadata)`; each is made when asked for, in well under a millisecond.

    Metadata: `prompt`, `path` (an id), `seconds_start`, `seconds_total` (of the clip, in seconds) and the true
    `instrument`, `note`, `midi`, `frequency_hz`, `detune_cents` (these four None without a pitch), `loudness`, `rms` (of the
    sounding part), `level_db` (RMS of the loudest 125 ms), `onset_s`, `duration_s`.

    Args:
        sample_size: T, samples in a clip. sample_rate: Hz. audio_channels: C, 1 or 2 (panned a little).

    Raises:
        ConfigError: a sound is longer than the clip, a note too high for the sample rate, or neither mono nor stereo is wanted.
    """

    def __init__(self, config: SyntheticConfig, sample_size: int, sample_rate: int, audio_channels: int = 1):
        if audio_channels not in (1, 2):
            raise ConfigError(f"audio_channels is {audio_channels}; synthetic sounds are mono (1) or stereo (2)", "synthetic dataset")
        self.config, self.sample_size, self.sample_rate, self.audio_channels = config, sample_size, sample_rate, audio_channels
        self.combinations = config.combinations(config.split)
        self._by_instrument = _grouped(self.combinations)
        _check_fit(config, self.combinations, sample_size, sample_rate)

    def __len__(self) -> int:
        return self.config.num_items

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        draws = self._draws(0, index)
        group = self._by_instrument[draws.below(len(self._by_instrument))]
        return self._make(group[draws.below(len(group))], index, draws)

    def sound(self, combination: Combination, index: int) -> tuple[Tensor, dict[str, Any]]:
        """The `index`-th sound of a given combination; none of these is an item of the pool."""
        return self._make(combination, index, self._draws(_NAMED_STREAM, index))

    def _draws(self, offset: int, index: int) -> Draws:
        return Draws((self.config.seed, _STREAMS[self.config.split] + offset), index)

    def _make(self, combination: Combination, index: int, draws: Draws) -> tuple[Tensor, dict[str, Any]]:
        detune = draws.between(-_DETUNE_CENTS, _DETUNE_CENTS)
        frequency_hz = midi_to_hz(69 if combination.midi is None else combination.midi + detune / 100)
        length, onset = self._place(draws)
        harmonics = int(BAND_LIMIT * self.sample_rate / 2 / frequency_hz)
        voice = INSTRUMENTS[combination.instrument].voice(draws, harmonics)
        clip = np.zeros(self.sample_size)
        clip[onset : onset + length] = render(voice, frequency_hz, length, self.sample_rate, draws)

        level_db = LEVELS_DB[combination.loudness] + draws.between(-_LEVEL_SPREAD_DB, _LEVEL_SPREAD_DB)
        clip *= 10 ** (level_db / 20) / level(clip, self.sample_rate)
        pitched = combination.midi is not None
        metadata = {
            "prompt": self._prompt(combination, draws),
            "path": f"synthetic/{self.config.split}/{self.config.seed}/{index:07d}",
            "seconds_start": 0.0,
            "seconds_total": self.sample_size / self.sample_rate,
            "instrument": combination.instrument,
            "note": None if combination.midi is None else midi_to_note(combination.midi),
            "midi": combination.midi,
            "frequency_hz": frequency_hz if pitched else None,
            "detune_cents": detune if pitched else None,
            "loudness": combination.loudness,
            "rms": math.sqrt(float(np.mean(np.square(clip[onset : onset + length])))),
            "level_db": level_db,
            "onset_s": onset / self.sample_rate,
            "duration_s": length / self.sample_rate,
        }
        return torch.from_numpy(self._channels(clip, draws).astype(np.float32)), metadata

    def _place(self, draws: Draws) -> tuple[int, int]:
        """Length and onset of the sound, in samples."""
        seconds = self.config.seconds
        if seconds is None:
            return self.sample_size, 0
        shortest, longest = seconds if isinstance(seconds, tuple) else (seconds, seconds)
        length = min(self.sample_size, round(draws.between(shortest, longest) * self.sample_rate))
        return length, draws.below(self.sample_size - length + 1)

    def _channels(self, clip: Array, draws: Draws) -> Array:
        """(C, T): mono, or panned with the mean power of the channels unchanged."""
        if self.audio_channels == 1:
            return clip[None]
        angle = math.pi / 4 * (1 + draws.between(-_MAX_PAN, _MAX_PAN))
        return math.sqrt(2) * np.stack((math.cos(angle) * clip, math.sin(angle) * clip))

    def _prompt(self, combination: Combination, draws: Draws) -> str:
        pitched, varied = combination.midi is not None, self.config.prompts == "varied"
        templates = (_VARIED if pitched else _VARIED_NOISE) if varied else (_PLAIN if pitched else _PLAIN_NOISE,)
        instrument = INSTRUMENTS[combination.instrument]
        return templates[draws.below(len(templates))].format(
            a_name=f"{instrument.article} {instrument.words}",
            note="" if combination.midi is None else midi_to_note(combination.midi),
            loudness=combination.loudness,
        )


def _grouped(combinations: Sequence[Combination]) -> list[list[Combination]]:
    """By instrument, so that every instrument is as frequent as any other."""
    groups: dict[str, list[Combination]] = {}
    for combination in combinations:
        groups.setdefault(combination.instrument, []).append(combination)
    return list(groups.values())


def _check_fit(config: SyntheticConfig, combinations: Sequence[Combination], sample_size: int, sample_rate: int) -> None:
    """What the config cannot know alone: the clip's length and the sample rate."""
    problems = []
    longest = max(config.seconds) if isinstance(config.seconds, tuple) else config.seconds
    crop_s = sample_size / sample_rate
    if longest is not None and longest > crop_s:
        fix = f"lower seconds to at most {crop_s:.3f}, or raise sample_size to {math.ceil(longest * sample_rate)}"
        problems.append(
            Problem(("seconds",), f"sounds of {longest} s do not fit a clip of {sample_size} samples = {crop_s:.3f} s", fix, longest)
        )
    highest = max((c.midi for c in combinations if c.midi is not None), default=0)
    limit_hz = BAND_LIMIT * sample_rate / 2 / 2 ** (_DETUNE_CENTS / 1200)
    if midi_to_hz(highest) >= limit_hz:
        message = (
            f"{midi_to_note(highest)} is {midi_to_hz(highest):.0f} Hz, too high for {sample_rate} Hz audio, which carries {limit_hz:.0f} Hz"
        )
        problems.append(Problem(("notes",), message, "lower the highest note or raise sample_rate", config.notes))
    if problems:
        raise ConfigError(problems, "synthetic dataset")
