"""How well what was heard agrees with what was asked for, and the report of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .listening import Heard, Labels, Listener
from .measure import Measure
from .statistics import Share

TOLERANCE_CENTS = 50.0

MODEL, REAL, NOISE, SHUFFLED = "model", "real sounds", "white noise", "real sounds, prompts shuffled (chance)"


@dataclass(frozen=True)
class Scores:
    """Of clips against their labels.

    pitch: within 50 cents of the note; for labels without a note, that no pitch is heard.
    median_cents: of the absolute error where a pitch is heard; NaN if nowhere.
    loudness: the nearest loudness word is the one asked for. loudness_error_db: median absolute distance from it.
    silence: mean share of silent time. broken: clips with a NaN or an infinity; these count as wrong everywhere.
    """

    pitch: Share
    median_cents: float
    instrument: Share
    loudness: Share
    loudness_error_db: float
    silence: float
    broken: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "pitch": self.pitch.to_dict(),
            "median_cents": _finite(self.median_cents),
            "instrument": self.instrument.to_dict(),
            "loudness": self.loudness.to_dict(),
            "loudness_error_db": _finite(self.loudness_error_db),
            "silence": _finite(self.silence),
            "broken": self.broken,
        }

    def measures(self, prefix: str, recipe: Mapping[str, Any]) -> list[Measure]:
        """The shares, with Wilson's intervals, under these names behind a prefix."""
        shares = {"pitch": self.pitch, "instrument": self.instrument, "loudness_word": self.loudness}
        shares["broken"] = Share(self.broken, self.pitch.total)
        return [Measure.of_share(prefix + name, share, recipe, "lower" if name == "broken" else "higher") for name, share in shares.items()]


def score(heard: Heard, labels: Sequence[Labels], listener: Listener, *, shuffled: bool = False) -> Scores:
    """Compare clip i with label i; with `shuffled`, with every other label, which is what chance gives on average.

    Args:
        labels: `instrument`, `midi` (None where there is no note) and `loudness` of each clip.
    """
    own = torch.eye(len(labels), dtype=torch.bool)
    pairs = ~own if shuffled else own
    cents = torch.stack([_cents(heard, label) for label in labels], 1).abs()
    levels = torch.tensor([listener.levels_db[label["loudness"]] for label in labels])
    words = _nearest_words(heard.level_db, listener.levels_db)
    pitched = torch.tensor([label["midi"] is not None for label in labels])
    silent_pitch = heard.finite[:, None] & ~heard.pitch.voiced[:, None] & ~pitched

    def share(hits: Tensor) -> Share:
        return Share(hits[pairs].sum().item() * len(labels) / max(1, int(pairs.sum())), len(labels))

    return Scores(
        share((cents <= TOLERANCE_CENTS) | silent_pitch),
        cents[pairs].nanmedian().item(),
        share(_equal(heard.instruments, [label["instrument"] for label in labels])),
        share(_equal(words, [label["loudness"] for label in labels])),
        (heard.level_db[:, None] - levels).abs()[pairs].nanmedian().item(),
        heard.silence.nanmean().item(),
        int((~heard.finite).sum()),
    )


def _cents(heard: Heard, label: Labels) -> Tensor:
    """(B,) distance of every clip's pitch from one label's note; NaN where either has none."""
    return heard.pitch.cents_from(torch.tensor(math.nan if label["midi"] is None else float(label["midi"])))


def _equal(heard: Sequence[str | None], asked: Sequence[str]) -> Tensor:
    return torch.tensor([[name == other for other in asked] for name in heard])


def _nearest_words(levels: Tensor, levels_db: Mapping[str, float]) -> list[str | None]:
    def nearest(level: float) -> str | None:
        return min(levels_db, key=lambda word: abs(levels_db[word] - level)) if math.isfinite(level) else None

    return [nearest(level) for level in levels.tolist()]


@dataclass(frozen=True)
class EvaluationReport:
    """Scores of a model beside those of real sounds and of noise, and the recipe that repeats them.

    pitched: name of the source (the model, real sounds, white noise, shuffled prompts) to its scores on prompts with a note.
    unpitched: the same for noise-like prompts; empty if the dataset has none.
    by_instrument: the model's scores on the prompts of each instrument.
    """

    recipe: Mapping[str, Any]
    pitched: Mapping[str, Scores]
    unpitched: Mapping[str, Scores] = field(default_factory=dict)
    by_instrument: Mapping[str, Scores] = field(default_factory=dict)

    @property
    def model(self) -> Scores:
        return self.pitched[MODEL]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is not a finite number is None."""
        tables = {"pitched": self.pitched, "unpitched": self.unpitched, "by_instrument": self.by_instrument}
        return {"recipe": dict(self.recipe)} | {name: {row: s.to_dict() for row, s in table.items()} for name, table in tables.items()}

    def measures(self) -> list[Measure]:
        """The model's scores on prompts with a note, and `tuneless_pitch` and so on, on noise-like ones, in the form of all metrics."""
        groups = {"": self.model} | ({"tuneless_": self.unpitched[MODEL]} if MODEL in self.unpitched else {})
        return [measure for prefix, scores in groups.items() for measure in scores.measures(prefix, self.recipe)]

    def to_markdown(self) -> str:
        """Tables to read; shares with their 95 % intervals."""
        blocks = [f"### Prompts with a note: {self.model.pitch.total} clips, {self.recipe['prompts']}", _table(self.pitched)]
        if self.unpitched:
            clips = next(iter(self.unpitched.values())).pitch.total
            blocks += [f"### Noise-like prompts: {clips} clips", _table(self.unpitched, pitch="no pitch")]
        if self.by_instrument:
            blocks += ["### The model by instrument", _table(self.by_instrument)]
        return "\n\n".join([*blocks, "Recipe: " + ", ".join(f"{key} {value}" for key, value in self.recipe.items())])


def _table(rows: Mapping[str, Scores], pitch: str = f"pitch within {TOLERANCE_CENTS:.0f} cents") -> str:
    """A Markdown table whose columns also line up as plain text."""
    head = ("", pitch, "median cents", "instrument", "loudness word", "median dB off", "silent", "broken")
    cells = [head] + [
        (
            name,
            str(scores.pitch),
            _number(scores.median_cents),
            str(scores.instrument),
            str(scores.loudness),
            _number(scores.loudness_error_db),
            f"{100 * scores.silence:.1f} %",
            str(scores.broken),
        )
        for name, scores in rows.items()
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _number(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "-"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
