"""What repeats a clip, named as the command `generate` names it, so that its `--from-settings` makes the clip again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stable_audio_tools import __version__
from stable_audio_tools.diffusion.guidance import EVERYWHERE, Guidance

from .requests import DiffusionRequest, LanguageRequest, ReconstructionRequest, Request
from .shelf import Opened

USUAL = asdict(Guidance())


def settings_of(opened: Opened, request: Request, seed: int) -> dict[str, Any]:
    """The settings of the clip with this seed; what is as usual is left out."""
    wanted = opened.wanted
    adapters = [f"{path}:{strength!r}" for path, strength in wanted.adapters]
    facts = {"sample_rate": opened.config.sample_rate, "version": __version__}
    said = {"model": wanted.model, "adapters": adapters, **_said(request), "seed": seed, **facts}
    return {key: _plain(value) for key, value in said.items() if value not in (None, (), [], {})}


def _said(request: Request) -> dict[str, Any]:
    match request:
        case ReconstructionRequest():
            kept = {name: getattr(request, name) for name in ("steps", "num_quantizers")}
            return {"reconstruct": request.audio, **kept, "latent_noise": request.latent_noise or None}
        case LanguageRequest():
            kept = {name: getattr(request, name) for name in ("seconds", "cfg_scale", "temperature", "top_k", "top_p")}
            return {**_words(request), **kept, "continue_from": request.init_audio}
        case DiffusionRequest():
            kept = {name: getattr(request, name) for name in ("seconds", "steps", "sampler", "sampler_options")}
            return {**_words(request), **kept, **_guidance(request.guidance), **_sounds(request)}


def _words(request: DiffusionRequest | LanguageRequest) -> dict[str, Any]:
    conditions = {name: value for name, value in request.conditions.items() if value is not None}
    prompt = conditions.pop("prompt", None)
    return {"prompt": prompt, "conditions": conditions, "negative_prompt": request.negative_prompt.strip() or None}


def _guidance(guidance: Guidance | None) -> dict[str, Any]:
    if guidance is None:
        return {}
    low, high = guidance.cfg_interval
    others = ("apg_scale", "apg_momentum", "cfg_norm_threshold")
    return {
        "cfg_scale": guidance.cfg_scale,
        "cfg_interval": None if (low, high) == EVERYWHERE else f"{low!r}:{high!r}",
        "cfg_rescale": guidance.scale_phi,
        **{name: value for name in others if (value := getattr(guidance, name)) != USUAL[name]},
        "no_batch_cfg": None if guidance.batch_cfg else True,
    }


def _sounds(request: DiffusionRequest) -> dict[str, Any]:
    varied, changed = request.init_audio, request.inpaint_audio
    part = request.region if changed else None
    return {
        "init_audio": varied,
        "init_noise_level": request.init_noise_level if varied else None,
        "inpaint_audio": changed,
        "mask": [f"{part.start!r}:{part.end!r}"] if part else None,
    }


def _plain(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return str(value) if isinstance(value, Path) else value
