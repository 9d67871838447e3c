"""Note names, MIDI numbers and frequencies: equal temperament, A4 = 440 Hz = MIDI 69."""

from __future__ import annotations

import re
from collections.abc import Iterable

NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_NOTE = re.compile(r"([A-G])([#b]?)(-1|[0-9])")
_RANGE = re.compile(rf"({_NOTE.pattern})-({_NOTE.pattern})")


def note_to_midi(name: str) -> int:
    """The MIDI number of a name such as "A4", "F#3" or "Bb2".

    Raises:
        ValueError: not a note name, or outside MIDI's 0 to 127.
    """
    match = _NOTE.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a note; write a letter A to G, # or b if any, and an octave, such as 'A4' or 'F#3'")
    letter, accidental, octave = match.groups()
    midi = 12 * (int(octave) + 1) + _STEPS[letter] + {"": 0, "#": 1, "b": -1}[accidental]
    if not 0 <= midi <= 127:
        raise ValueError(f"note {name!r} is outside MIDI's range, C-1 to G9")
    return midi


def midi_to_note(midi: int) -> str:
    """The name with sharps: 69 is "A4"."""
    return f"{NAMES[midi % 12]}{midi // 12 - 1}"


def midi_to_hz(midi: float) -> float:
    return 440.0 * 2 ** ((midi - 69) / 12)


def parse_notes(notes: str | Iterable[str]) -> tuple[int, ...]:
    """MIDI numbers, ascending, of note names and inclusive chromatic ranges such as "A3-A5".

    Raises:
        ValueError: not a note or a range, a range that falls, or nothing at all.
    """
    found = {midi for item in ([notes] if isinstance(notes, str) else notes) for midi in _one_or_range(item)}
    if not found:
        raise ValueError("no note given; name at least one, such as 'A4', or a range, such as 'A3-A5'")
    return tuple(sorted(found))


def _one_or_range(item: str) -> Iterable[int]:
    match = _RANGE.fullmatch(item)
    if match is None:
        return (note_to_midi(item),)
    low, high = note_to_midi(match[1]), note_to_midi(match[5])
    if low > high:
        raise ValueError(f"the range {item!r} falls; write the lower note first")
    return range(low, high + 1)
