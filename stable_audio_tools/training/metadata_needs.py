"""Which metadata a model's conditioners read, from its config alone."""

from __future__ import annotations

from typing import Any

from stable_audio_tools.data.needs import Need


def metadata_needs(config: Any) -> tuple[Need, ...]:
    """What each conditioner in use reads, and each condition of training; nothing for models without conditions.

    Args:
        config: a validated model config; of a run config, the training counts too.
    """
    conditions = getattr(getattr(config, "training", None), "token_conditions", ())
    told = tuple(
        Need(each.type, (each.reads,), reader=f'the condition "{each.type}" of training', fix="name another key as its source")
        for each in conditions
        if each.reads is not None
    )
    return told + _of_conditioners(config.model)


def _of_conditioners(body: Any) -> tuple[Need, ...]:
    conditioning = getattr(body, "conditioning", None)
    network = getattr(body, "diffusion", None) or getattr(body, "lm", None)
    if conditioning is None or network is None:
        return ()
    used = network.routes.tokens | network.routes.vectors
    keys = {name: (name, *([conditioning.default_keys[name]] if name in conditioning.default_keys else [])) for name in conditioning.ids}
    return tuple(Need(name, keys[name], conditioning.reads(name)) for name in conditioning.ids if name in used)
