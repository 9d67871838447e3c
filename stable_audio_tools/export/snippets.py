"""The few lines of Python that use an exported model, as its card shows them. They run as they stand, in the model's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from stable_audio_tools.models.config import BaseModelConfig

STEPS, CFG_SCALE = 50, 3.0  # chosen: where the model's demo settings do not say

DIFFUSERS = """\
import torch
from diffusers import AutoencoderOobleck

model = AutoencoderOobleck.from_pretrained(".")
audio = torch.zeros(1, {channels}, {samples})  # yours, at {sample_rate} Hz
latents = model.encode(audio).latent_dist.mode()
decoded = model.decode(latents).sample
"""
LOADING = """\
from stable_audio_tools import get_pretrained_model
{imports}

model, config = get_pretrained_model("{weights}")
"""
SAVING = 'save_audio("clip.wav", audio[0].cpu(), config["sample_rate"])\n'


def snippet(config: BaseModelConfig, training: Mapping[str, Any], weights: str, *, diffusers: bool = False) -> str | None:
    """Python that makes or encodes audio; None for a model whose conditions no text or number stands for.

    Args:
        config: of the model.
        training: its `training` section, whose demos say what suits it.
        weights: what `get_pretrained_model` is given.
        diffusers: it is for diffusers' `AutoencoderOobleck`.
    """
    if diffusers:
        return DIFFUSERS.format(channels=config.audio_channels, samples=config.sample_size, sample_rate=config.sample_rate)
    demo = training.get("demo") or {}
    steps = demo.get("demo_steps") or STEPS
    conditions = _conditions(config, demo)
    if conditions is None:
        return None
    match config.model_type:
        case "autoencoder":
            return _reconstruction(weights, "")
        case "diffusion_autoencoder":
            return _reconstruction(weights, f", steps={steps}")
        case "diffusion_uncond":
            call = f'generate_diffusion_uncond(model, steps={steps}, sample_size=config["sample_size"], seed=0)'
            return _generation(weights, "generation", call)
        case "lm":
            given = f"conditioning={_json([conditions])}, " if conditions else ""
            seconds = f"{config.sample_size / config.sample_rate:.4g}"
            return _generation(weights, "language", f"generate_lm(model, {given}seconds={seconds}, seed=0)")
    function = "generate_diffusion_cond" + ("_inpaint" if config.model_type == "diffusion_cond_inpaint" else "")
    scale = float(next(iter(demo.get("demo_cfg_scales") or ()), CFG_SCALE))
    arguments = [
        "model",
        f"steps={steps}",
        f"cfg_scale={scale:g}",
        f"conditioning={_json([conditions])}",
        'sample_size=config["sample_size"]',
        "seed=0",
    ]
    return _generation(weights, "generation", "".join([f"{function}(\n", *(f"    {argument},\n" for argument in arguments), ")"]))


def _json(value: Any) -> str:
    """Texts and numbers as JSON, which is Python as well."""
    return json.dumps(value, ensure_ascii=False)


def _generation(weights: str, module: str, call: str) -> str:
    function = call.partition("(")[0]
    imports = f"from stable_audio_tools.audio.io import save_audio\nfrom stable_audio_tools.inference.{module} import {function}"
    return f"{LOADING.format(imports=imports, weights=weights)}audio = {call}\n{SAVING}"


def _reconstruction(weights: str, more: str) -> str:
    imports = "\n".join(
        [
            "from stable_audio_tools.audio.io import load_audio, save_audio",
            "from stable_audio_tools.inference.reconstruction import reconstruct",
        ]
    )
    call = f'sound, rate = load_audio("sound.wav")  # any rate and length\naudio = reconstruct(model, (rate, sound), seed=0{more})\n'
    return LOADING.format(imports=imports, weights=weights) + call + SAVING


def _conditions(config: BaseModelConfig, demo: Mapping[str, Any]) -> dict[str, Any] | None:
    """What to condition on: the first demo's values, else what each conditioner accepts, as far as that is text or numbers."""
    conditioning = getattr(config.model, "conditioning", None)
    if conditioning is None:
        return {}
    shown: Mapping[str, Any] = next(iter(demo.get("demo_cond") or ()), {})
    seconds = config.sample_size / config.sample_rate
    whole = conditioning.reads("seconds_total") == "a whole number" if "seconds_total" in conditioning.ids else False
    times = {"seconds_start": 0, "seconds_total": math.ceil(seconds) if whole else round(seconds, 2)}
    known = conditioning.example(config.sample_rate, getattr(config.model, "pretransform", None)) | times
    keys = conditioning.default_keys
    found = {name: shown.get(name, shown.get(keys.get(name), known[name])) for name in conditioning.ids}
    return found if all(isinstance(value, (str, int, float)) for value in found.values()) else None
