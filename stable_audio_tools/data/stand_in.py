"""Serving an item, or another one in its place while its file cannot be served: which one is a function of the item's key."""

from __future__ import annotations

from collections.abc import Callable

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.data.draws import below
from stable_audio_tools.data.latent_folder import NotServableError
from stable_audio_tools.data.types import Fault, ItemKey, Sample

ATTEMPTS = 16  # items tried before the dataset counts as gone, chosen


def serve(key: ItemKey, length: int, make: Callable[[int, int], Sample], name: Callable[[int], str]) -> Sample:
    """The item named by `key`, or the first stand-in that can be served.

    Args:
        length: items of the data set.
        make: item and number of the attempt to a sample; raises NotServableError.
        name: an item's file, for messages.

    Raises:
        ConfigError: item after item cannot be served.
    """
    faults: list[Fault] = []
    for attempt in range(ATTEMPTS):
        item = below(length, *key, "instead", attempt) if attempt else key.item
        try:
            return make(item, attempt)._replace(faults=tuple(faults))
        except NotServableError as error:
            faults.append(Fault(name(item), str(error)))
    first = [f"{fault.path}: {fault.cause}" for fault in faults[:4]]
    raise ConfigError("\n".join([f"{len(faults)} files in a row cannot be served; the first causes:", *first]), "dataset")
