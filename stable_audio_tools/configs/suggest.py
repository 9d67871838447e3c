"""Near-misses: which known name a user most likely meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.62  # chosen: finds one wrong, missing or swapped letter in four, and leaves unrelated words alone
MAX_LISTED = 16


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is a slip of, or None: letter case, separators, typos and initials ("lr") are looked through."""
    known = [candidate for candidate in known if candidate != name]
    plain: dict[str, str] = {}
    for candidate in known:
        plain.setdefault(_plain(candidate), candidate)
    found = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=CUTOFF)
    if found:
        return plain[found[0]]
    initials = [candidate for candidate in known if "_" in candidate and _initials(candidate) == name.lower()]
    return initials[0] if len(initials) == 1 else None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A fix for a wrong name: the near-miss if there is one, and what else is known."""
    known = list(known)
    near = closest(name, known) if isinstance(name, str) else None
    question = f'did you mean "{near}"?' if near else ""
    names = f"known: {listed(known)}" if known and known != [near] else ""
    return f"{question} {names}".strip()


def listed(names: Iterable[str]) -> str:
    """Names as a list for reading, cut where nobody reads on."""
    names = list(names)
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


def _initials(name: str) -> str:
    return "".join(word[0] for word in name.lower().split("_") if word)
