"""How each kind of model makes a batch of clips: by which function, with which settings.

A maker is made from a model without weights, so that all that is wrong is said before they are read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from stable_audio_tools.audio.io import load_audio
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.diffusion.samplers import Step, find_sampler
from stable_audio_tools.inference.continuation import continuation
from stable_audio_tools.inference.generation import (
    generate_diffusion_cond,
    generate_diffusion_cond_inpaint,
    generate_diffusion_uncond,
    inpaints,
)
from stable_audio_tools.inference.language import generate_lm
from stable_audio_tools.inference.reconstruction import reconstruct
from stable_audio_tools.models.diffusion_autoencoder import DECODING_STEPS, DiffusionAutoencoder

from .acts import check_guidance, given
from .flags import CFG_SCALE, INIT_NOISE_LEVEL, STEPS
from .wishes import key_value

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Clip:
    """One clip to make.

    metadata: what the model's conditioners read. negative: the same, to guide away from; None: nothing.
    length: samples to generate; keep: samples to write of them. name: of its file, without the ending; None: chosen from the prompt.
    source: the file it reconstructs.
    """

    metadata: Mapping[str, Any]
    negative: Mapping[str, Any] | None
    seed: int
    length: int
    keep: int
    name: str | None = None
    source: str | None = None


class Maker(Protocol):
    """Makes batches of clips of one length, all with a negative or none.

    settings: what repeats a clip beside its own seed, length and conditions, as flags by name.
    """

    @property
    def settings(self) -> dict[str, Any]: ...

    def make(self, model: nn.Module, clips: Sequence[Clip], progress: Progress) -> Tensor:
        """(B, C, at least `keep` samples)."""
        ...


@dataclass(frozen=True)
class DiffusionMaker:
    """Of all diffusion models. guidance: arguments of `diffusion.guidance.Guidance`; none for a model without conditions."""

    steps: int
    sampler: str
    options: Mapping[str, Any]
    guidance: Mapping[str, Any] = field(default_factory=dict)
    init_audio: str | None = None
    init_noise_level: float | None = None
    inpaint_audio: str | None = None
    mask: tuple[tuple[float, float], ...] = ()
    continue_from: str | None = None
    reference: tuple[str, ...] = ()

    @classmethod
    def of(cls, args: argparse.Namespace, model: Any, demo: Mapping[str, Any]) -> DiffusionMaker:
        """What flags, then the model's demos say.

        Raises:
            ConfigError: no such sampler or option, or flags that shape guidance where there is none.
        """
        sampler = args.sampler or demo.get("sampler_type") or model.objective.default_sampler
        options = dict(key_value(text, "--sampler-option") for text in args.sampler_option)
        chosen = find_sampler(sampler, model.objective, options)
        guidance = _guidance(args, demo) if hasattr(model, "conditioner") else {"cfg_scale": 1}
        if chosen.cfgpp and guidance["cfg_scale"] == 1:
            message = "follows the unconditional prediction, and without guidance there is none"
            raise ConfigError([Problem((), message, "add --cfg-scale, from 0 to below 1, or choose another")], f"--sampler {sampler}")
        if args.init_noise_level is not None and "sigma_max" in options:
            message = "--sampler-option sigma_max says too how much noise --init-audio gets"
            raise ConfigError([Problem((), message, "keep one")], source="--init-noise-level")
        default = None if args.init_audio is None or "sigma_max" in options else INIT_NOISE_LEVEL
        varied = default if args.init_noise_level is None else args.init_noise_level
        return cls(
            args.steps or demo.get("demo_steps") or STEPS,
            sampler,
            options,
            guidance if hasattr(model, "conditioner") else {},
            args.init_audio,
            varied,
            args.inpaint_audio,
            tuple(args.mask),
            args.continue_from,
            tuple(args.reference),
        )

    @property
    def settings(self) -> dict[str, Any]:
        low, high = self.guidance.get("cfg_interval", (0, 1))
        return {
            "steps": self.steps,
            "sampler": self.sampler,
            "sampler_options": self.options or None,
            "cfg_scale": self.guidance.get("cfg_scale"),
            "cfg_interval": f"{_exact(low)}:{_exact(high)}" if "cfg_interval" in self.guidance else None,
            "cfg_rescale": self.guidance.get("scale_phi"),
            **{name: self.guidance.get(name) for name in ("apg_scale", "apg_momentum", "cfg_norm_threshold")},
            "no_batch_cfg": True if "batch_cfg" in self.guidance else None,
            "init_audio": self.init_audio,
            "init_noise_level": self.init_noise_level,
            "inpaint_audio": self.inpaint_audio,
            "mask": [f"{_exact(start)}:{_exact(end)}" for start, end in self.mask] or None,
            "continue_from": self.continue_from,
            "reference": list(self.reference) or None,
        }

    def make(self, model: Any, clips: Sequence[Clip], progress: Progress) -> Tensor:
        def callback(step: Step) -> None:
            progress(step.index + 1, self.steps)

        length = clips[0].length
        options: dict[str, Any] = {"steps": self.steps, "sample_size": length, "seed": [clip.seed for clip in clips]}
        options |= {"sampler_type": self.sampler, "callback": callback, **self.options}
        if self.init_audio is not None:
            options["init_audio"] = _audio(self.init_audio, model, length)
        if self.init_noise_level is not None:
            options["init_noise_level"] = self.init_noise_level
        if not hasattr(model, "conditioner"):
            return generate_diffusion_uncond(model, batch_size=len(clips), **options)
        options |= {**self.guidance, **_conditioning(clips), "reference_audio": [_audio(path, model) for path in self.reference]}
        if not inpaints(model):
            return generate_diffusion_cond(model, **options)
        if self.inpaint_audio is not None:
            options |= {"inpaint_audio": _audio(self.inpaint_audio, model, length), "regenerate_s": self.mask}
        if self.continue_from is not None:
            options |= continuation(_audio(self.continue_from, model), model.sample_rate, seconds=length / model.sample_rate)
        return generate_diffusion_cond_inpaint(model, **options)


@dataclass(frozen=True)
class LanguageMaker:
    """Of language models. top_k, top_p: at most one is there."""

    cfg_scale: float
    temperature: float
    top_k: int | None
    top_p: float | None
    continue_from: str | None = None

    @classmethod
    def of(cls, args: argparse.Namespace, model: Any, demo: Mapping[str, Any]) -> LanguageMaker:
        scale = next(iter(demo.get("demo_cfg_scales") or ()), 1.0) if args.cfg_scale is None else args.cfg_scale
        if args.cfg_scale not in (None, 1) and not model.conditioner.conditioners:
            raise ConfigError("the model has no conditions to guide by", source="--cfg-scale")
        chosen = args.top_k is not None or args.top_p is not None
        top_k, top_p = (args.top_k, args.top_p) if chosen else (demo.get("top_k"), demo.get("top_p"))
        temperature = demo.get("temperature", 1.0) if args.temperature is None else args.temperature
        return cls(float(scale), temperature, top_k, top_p, args.continue_from)

    @property
    def settings(self) -> dict[str, Any]:
        names = ("cfg_scale", "temperature", "top_k", "top_p", "continue_from")
        return {name: getattr(self, name) for name in names}

    def make(self, model: Any, clips: Sequence[Clip], progress: Progress) -> Tensor:
        return generate_lm(
            model,
            **(_conditioning(clips) if model.conditioner.conditioners else {}),
            batch_size=len(clips),
            seconds=clips[0].length / model.sample_rate,
            cfg_scale=self.cfg_scale if model.conditioner.conditioners else 1.0,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            init_audio=None if self.continue_from is None else _audio(self.continue_from, model),
            seed=[clip.seed for clip in clips],
            callback=progress,
        )


@dataclass(frozen=True)
class ReconstructionMaker:
    """Of autoencoders, one file at a time. steps: of a diffusion autoencoder's sampler."""

    steps: int | None
    num_quantizers: int | None
    latent_noise: float

    @classmethod
    def of(cls, args: argparse.Namespace, model: Any, demo: Mapping[str, Any]) -> ReconstructionMaker:
        books = args.num_quantizers
        if books is not None and not model.is_discrete:
            raise ConfigError([Problem((), "the model's latents are continuous", "leave it out")], source="--num-quantizers")
        if books is not None and books > model.num_quantizers:
            raise ConfigError(f"the model has {model.num_quantizers}", source=f"--num-quantizers {books}")
        samples = isinstance(model, DiffusionAutoencoder)
        return cls((args.steps or demo.get("demo_steps") or DECODING_STEPS) if samples else None, books, args.latent_noise or 0.0)

    @property
    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps, "num_quantizers": self.num_quantizers, "latent_noise": self.latent_noise or None}

    def make(self, model: Any, clips: Sequence[Clip], progress: Progress) -> Tensor:
        (clip,) = clips
        assert clip.source is not None
        return reconstruct(
            model,
            _audio(clip.source, model),
            steps=self.steps,
            seed=clip.seed,
            num_quantizers=self.num_quantizers,
            latent_noise=self.latent_noise,
            callback=progress,
        )


MAKERS: dict[str, type[DiffusionMaker] | type[LanguageMaker] | type[ReconstructionMaker]] = {
    **dict.fromkeys(("diffusion_cond", "diffusion_cond_inpaint", "diffusion_uncond"), DiffusionMaker),
    **dict.fromkeys(("autoencoder", "diffusion_autoencoder"), ReconstructionMaker),
    "lm": LanguageMaker,
}


def _guidance(args: argparse.Namespace, demo: Mapping[str, Any]) -> dict[str, Any]:
    scale = float(next(iter(demo.get("demo_cfg_scales") or ()), CFG_SCALE)) if args.cfg_scale is None else args.cfg_scale
    check_guidance(args, scale)
    names = {"cfg_interval": "cfg_interval", "cfg_rescale": "scale_phi"}
    names |= {name: name for name in ("apg_scale", "apg_momentum", "cfg_norm_threshold")}
    shaped = {argument: getattr(args, name) for name, argument in names.items() if given(args, name)}
    return {"cfg_scale": scale, **shaped, **({"batch_cfg": False} if args.no_batch_cfg else {})}


def _conditioning(clips: Sequence[Clip]) -> dict[str, Any]:
    negative = [clip.negative for clip in clips] if clips[0].negative is not None else None
    return {"conditioning": [clip.metadata for clip in clips], "negative_conditioning": negative}


def _exact(number: float) -> str:
    """The shortest text that reads as this number."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def _audio(path: str, model: Any, frames: int | None = None) -> tuple[int, Tensor]:
    """A file, at most so many samples of it at the model's rate."""
    audio, rate = load_audio(path, sample_rate=model.sample_rate, frames=frames)
    return rate, audio
