"""Do the conditions that a network's config names exist, can they go the way they are sent, and are they of the width it states?

Asked of configs, before any weight exists.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from stable_audio_tools.configs.errors import Problem, value_text
from stable_audio_tools.configs.suggest import did_you_mean

from .conditioners import ConditioningConfig

logger = logging.getLogger(__name__)

Ids = tuple[str, ...]


class Width(NamedTuple):
    """A width that the network's config states for a route.

    key: the key of the section's `config` that states it.
    value: its value; 0: the route is closed; None: whatever the conditions have.
    summed: the route's conditions stand beside each other and their widths add up, else each has this width.
    listing: the key holds several numbers, whose sum is `value`.
    """

    key: str
    value: int | None
    summed: bool
    listing: bool = False


class Places(NamedTuple):
    """How many tokens a route has places for, by the key of the section's `config` that says so."""

    key: str
    value: int


@dataclass(frozen=True)
class RoutingRules:
    """What one section of a model's config says about conditions; paths of problems start at the model.

    section: its name, such as "diffusion". network: its type, for messages.
    ids: for each key of ids, the conditions that it names. widths: for each of these keys that the network has a route for.
    places: for those of them whose number of tokens is limited.
    conditioning: what makes the conditions.
    made: width of the conditions that are made from the audio, which are channels and nothing else.
    """

    section: str
    network: str
    ids: Mapping[str, Ids]
    widths: Mapping[str, Width]
    conditioning: ConditioningConfig | None
    places: Mapping[str, Places] = field(default_factory=dict)
    made: Mapping[str, int] = field(default_factory=dict)

    def problems(self) -> Iterator[Problem]:
        for key, names in self.ids.items():
            yield from self._id_problems(key, names)
        for key, names in self.ids.items():
            yield from self._width_problems(key, names)
            yield from self._place_problems(key, names)

    def report_idle(self) -> None:
        """Log the conditioners that nothing uses."""
        used = {name for names in self.ids.values() for name in names}
        for name in self.conditioning.ids if self.conditioning else ():
            if name not in used:
                logger.warning("the conditioner %s has no effect: none of the %s section's ids names it", value_text(name), self.section)

    def _id_problems(self, key: str, names: Ids) -> Iterator[Problem]:
        known = self.conditioning.ids if self.conditioning else ()
        for index, name in enumerate(names):
            path = (self.section, key, index)
            if name in names[:index]:
                yield Problem(path, f"{value_text(name)} is listed twice", "keep one", name)
            elif name in self.made and key != "input_concat_ids":
                yield Problem(path, f"{value_text(name)} can only go by input_concat_ids", "move it there", name)
            elif name not in known and name not in self.made:
                fix = did_you_mean(name, known) or "add a conditioner of that id to conditioning.configs, or remove it here"
                yield Problem(path, f"there is no conditioner {value_text(name)}", fix, name)
            elif self.conditioning and name in known and (problem := self.conditioning.misrouted(name, key)):
                yield replace(problem, path=path)

    def _width_problems(self, key: str, names: Ids) -> Iterator[Problem]:
        if key not in self.widths:
            if names:
                yield Problem((self.section, key), f"{self.network} takes no conditions this way", "remove the key")
            return
        stated = self.widths[key]
        if not names and stated.value:
            message = f"{stated.key} is {stated.value}, but {key} names no condition"
            fix = f"name conditions in {self.section}.{key}, or remove {stated.key}"
            yield Problem(self._path(stated.key), message, fix)
        widths = self._widths(names)
        if widths and len(widths) == len(names):  # an unknown id is reported by its own rule
            yield from self._misfits(key, stated, widths)

    def _misfits(self, key: str, stated: Width, widths: Mapping[str, int]) -> Iterator[Problem]:
        path = self._path(stated.key)
        listed = ", ".join(f"{name} {wide}" for name, wide in widths.items())
        message = f"{stated.key} is {stated.value}, but the conditions of {key} have width {listed}"
        total, distinct = sum(widths.values()), {*widths.values()}
        if stated.summed and stated.value not in (None, total):
            sums = f": {total} together" if len(widths) > 1 else ""
            fix = f"make its numbers {total} together" if stated.listing else f"set {stated.key} to {total}"
            yield Problem(path, message + sums, fix)
        elif not stated.summed and distinct != {stated.value}:
            one = "give them one width by output_dim, and set it here"
            yield Problem(path, message, f"set {stated.key} to {distinct.pop()}" if len(distinct) == 1 else one)

    def _place_problems(self, key: str, names: Ids) -> Iterator[Problem]:
        if key not in self.places or self.conditioning is None:
            return
        places = self.places[key]
        counts = {name: self.conditioning.num_tokens(name) or 0 for name in names if name in self.conditioning.ids}
        needed = sum(counts.values())
        if needed > places.value:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
            message = f"{places.key} is {places.value}, but the conditions of {key} have more tokens: {listed}"
            yield Problem(self._path(places.key), message, f"set {places.key} to {needed}, or lower max_length of the prompt")

    def _widths(self, names: Ids) -> dict[str, int]:
        """Width or channels of each condition that exists."""
        made = {name: self.made[name] for name in names if name in self.made}
        if self.conditioning is None:
            return made
        return {name: self.conditioning.width(name) for name in names if name in self.conditioning.ids} | made

    def _path(self, key: str) -> tuple[str, ...]:
        return (self.section, "config", key)
