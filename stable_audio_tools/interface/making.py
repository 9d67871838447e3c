"""From a request to files: clips with their spectrograms and settings, each in the folder of the visitor who asked.

Clip k of a request is made from seed + k alone, as the command `generate` makes it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.audio.io import load_audio, save_audio
from stable_audio_tools.audio.spectrogram import save_spectrogram
from stable_audio_tools.diffusion.guidance import Guidance
from stable_audio_tools.inference import generation
from stable_audio_tools.inference.language import generate_lm
from stable_audio_tools.inference.reconstruction import reconstruct
from stable_audio_tools.models.conditioners import ConditionerConfig
from stable_audio_tools.models.config import BaseModelConfig

from .form import conditioners_of, takes_inpainting
from .requests import DiffusionRequest, LanguageRequest, ReconstructionRequest, Request
from .settings import settings_of
from .shelf import Opened

SLUG = 48  # characters of a prompt that a file name repeats
PICTURE = (640, 288)

Told = Callable[[int, int], None]
"""Is told how many steps are done, and of how many."""


@dataclass(frozen=True)
class Clip:
    """A clip on the disk.

    audio: its WAV file; the picture is beside it as PNG, the settings as JSON. remark: what was changed to write it, or "".
    """

    audio: Path
    seconds: float
    settings: Mapping[str, Any]
    remark: str = ""

    @property
    def picture(self) -> Path:
        return self.audio.with_suffix(".png")


def make(opened: Opened, request: Request, folder: Path, told: Told) -> list[Clip]:
    """Make what was asked for and write it into `folder`, never over an earlier clip.

    Raises:
        ConfigError: the model has no use for a setting, a sound cannot be read, or a file cannot be written.
        ValueError: settings that do not fit each other.
    """
    match request:
        case ReconstructionRequest():
            clips = _reconstructed(opened, request, told)
        case DiffusionRequest():
            clips = _of_diffusion(opened, request, told)
        case LanguageRequest():
            clips = _of_language(opened, request, told)
    folder.mkdir(parents=True, exist_ok=True)
    rate = opened.config.sample_rate
    made = ((clip, settings_of(opened, request, request.seed + index)) for index, clip in enumerate(clips.cpu()))
    return [_written(clip, rate, folder, settings) for clip, settings in made]


# the sound


def _of_diffusion(opened: Opened, request: DiffusionRequest, told: Told) -> Tensor:
    """(B, C, T) clips, cut to what was asked for."""
    config, model = opened.config, opened.model
    keep = max(1, round(request.seconds * config.sample_rate))
    conditions = _conditions(config, request.conditions, request.seconds)
    # A model that is told how long a sound is was trained on whole clips that end in silence, so it gets one.
    size = max(keep, config.sample_size) if "seconds_total" in conditions else keep
    options: dict[str, Any] = {
        "steps": request.steps,
        "sample_size": size,
        "seed": _seeds(request),
        "sampler_type": request.sampler,
        "callback": lambda step: told(step.index + 1, request.steps),
        "init_audio": _sound(request.init_audio, config, size),
        "init_noise_level": request.init_noise_level,
        **request.sampler_options,
    }
    if config.model_type == "diffusion_uncond":
        made = generation.generate_diffusion_uncond(model, batch_size=request.clips, **options)  # type: ignore[arg-type]
        return made[..., :keep]
    options |= asdict(request.guidance or Guidance()) | {"conditioning": [conditions] * request.clips}
    if request.negative_prompt.strip():
        options["negative_conditioning"] = _negative(request, conditions)
    if takes_inpainting(config):
        parts = None if request.region is None else [request.region]
        made = generation.generate_diffusion_cond_inpaint(
            model,  # type: ignore[arg-type]
            inpaint_audio=_sound(request.inpaint_audio, config, size),
            regenerate_s=parts,
            **options,
        )
    else:
        made = generation.generate_diffusion_cond(model, **options)  # type: ignore[arg-type]
    return made[..., :keep]


def _reconstructed(opened: Opened, request: ReconstructionRequest, told: Told) -> Tensor:
    """(1, C, T), as long as the sound that was given."""
    given = _sound(request.audio, opened.config)
    assert given is not None
    options = {"steps": request.steps, "num_quantizers": request.num_quantizers, "latent_noise": request.latent_noise}
    return reconstruct(opened.model, given, seed=request.seed, callback=told, **options)  # type: ignore[arg-type]


def _of_language(opened: Opened, request: LanguageRequest, told: Told) -> Tensor:
    """(B, C, T) clips, a given sound at their start."""
    conditions = _conditions(opened.config, request.conditions, request.seconds)
    return generate_lm(
        opened.model,  # type: ignore[arg-type]
        conditioning=[conditions] * request.clips if conditions else None,
        negative_conditioning=_negative(request, conditions) if request.negative_prompt.strip() else None,
        batch_size=request.clips,
        seconds=request.seconds,
        cfg_scale=request.cfg_scale,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        init_audio=_sound(request.init_audio, opened.config),
        seed=_seeds(request),
        callback=told,
    )


def _seeds(request: DiffusionRequest | LanguageRequest) -> list[int]:
    """One for each clip, so that a clip does not depend on those beside it."""
    return [request.seed + index for index in range(request.clips)]


def _negative(request: DiffusionRequest | LanguageRequest, conditions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry for all clips: what is asked for, with the negative prompt in the prompt's place."""
    return [{**conditions, "prompt": request.negative_prompt}]


def _conditions(config: BaseModelConfig, given: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The metadata of a clip, with the sounds in it read and its times filled in."""
    conditioners = conditioners_of(config)
    metadata = {name: _condition(config, conditioners[name], value) for name, value in given.items() if value is not None}
    if "seconds_start" in conditioners:
        metadata.setdefault("seconds_start", 0)
    if "seconds_total" in conditioners:
        whole = conditioners["seconds_total"].reads == "a whole number" or seconds == int(seconds)
        metadata.setdefault("seconds_total", math.ceil(seconds) if whole else seconds)
    return metadata


def _condition(config: BaseModelConfig, conditioner: ConditionerConfig, value: Any) -> Any:
    if isinstance(value, Mapping) and any(isinstance(entry, Path) for entry in value.values()):
        return {name: _condition(config, conditioner, entry) for name, entry in value.items()}
    if not isinstance(value, Path):
        return value
    rate = getattr(conditioner.config, "sample_rate", None) or config.sample_rate
    if conditioner.form != "signal":
        return load_audio(value, sample_rate=rate)[0]
    length = round(config.sample_size * rate / config.sample_rate)  # whole frames, as in training
    audio, _ = load_audio(value, sample_rate=rate, frames=length)
    return F.pad(audio, (0, length - audio.shape[-1]))


def _sound(path: Path | None, config: BaseModelConfig, frames: int | None = None) -> tuple[int, Tensor] | None:
    """A file, at most so many samples of it at the model's rate."""
    if path is None:
        return None
    audio, rate = load_audio(path, sample_rate=config.sample_rate, frames=frames)
    return rate, audio


# the files


def _written(audio: Tensor, sample_rate: int, folder: Path, settings: dict[str, Any]) -> Clip:
    """Write a clip (C, T) under a name that is free; where its peak is over full scale, all of it is made quieter."""
    path = _free(folder, f"{_slug(settings.get('prompt') or 'clip')}_seed{settings['seed']}")
    peak = float(audio.abs().nan_to_num(0, posinf=0).max())
    saved = save_audio(path, audio * (1 / peak) if peak > 1 else audio, sample_rate)
    save_spectrogram(audio, sample_rate, path.with_suffix(".png"), width=PICTURE[0], height=PICTURE[1])
    path.with_suffix(".json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    remarks = [f"made {20 * math.log10(peak):.1f} dB quieter, to fit full scale"] if peak > 1 else []
    remarks += [f"{saved.not_finite} samples that were not finite were silenced"] if saved.not_finite else []
    return Clip(path, audio.shape[-1] / sample_rate, settings, "; ".join(remarks))


def _slug(text: str) -> str:
    return re.sub(r"[^\w#]+", "_", text.lower()).strip("_")[:SLUG].rstrip("_") or "clip"


def _free(folder: Path, stem: str) -> Path:
    names = (folder / f"{stem}{'' if number == 1 else f'_{number}'}.wav" for number in range(1, 10_000))
    return next(path for path in names if not path.exists())
