"""Kinds of values that flags take, each saying what it expected."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def whole(least: int) -> Callable[[str], int]:
    """A whole number of `least` or more."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of {least} or more, got {text!r}")
        return value

    return parse


def number(text: str) -> float:
    """A finite number."""
    return _number(text, "a number", lambda value: True)


def positive(text: str) -> float:
    """A number above 0."""
    return _number(text, "a number above 0", lambda value: value > 0)


def not_negative(text: str) -> float:
    """A number of 0 or more."""
    return _number(text, "a number of 0 or more", lambda value: value >= 0)


def share(text: str) -> float:
    """A number above 0, at most 1."""
    return _number(text, "a number above 0, at most 1", lambda value: 0 < value <= 1)


def _number(text: str, what: str, fits: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not fits(value):
        raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
    return value
