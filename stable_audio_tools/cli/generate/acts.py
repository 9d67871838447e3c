"""Which flags act on which models: one that cannot act is refused, with the reason and what to do."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.diffusion.known import Told

DIFFUSION = ("diffusion_cond", "diffusion_cond_inpaint", "diffusion_uncond")
AUTOENCODERS = ("autoencoder", "diffusion_autoencoder")
CONDITIONED = ("diffusion_cond", "diffusion_cond_inpaint")
GUIDED = (*CONDITIONED, "lm")
GENERATORS = (*DIFFUSION, "lm")

ACTS_ON = {
    "prompts_file": GENERATORS,
    "seconds": GENERATORS,
    "init_audio": DIFFUSION,
    "init_noise_level": DIFFUSION,
    "inpaint_audio": ("diffusion_cond_inpaint",),
    "mask": ("diffusion_cond_inpaint",),
    "continue_from": ("diffusion_cond_inpaint", "lm"),
    "reference": CONDITIONED,
    "reconstruct": AUTOENCODERS,
    "num_quantizers": AUTOENCODERS,
    "latent_noise": AUTOENCODERS,
    "steps": (*DIFFUSION, "diffusion_autoencoder"),
    "sampler": DIFFUSION,
    "sampler_option": DIFFUSION,
    "cfg_scale": GUIDED,
    "cfg_interval": CONDITIONED,
    "cfg_rescale": CONDITIONED,
    "apg_scale": CONDITIONED,
    "apg_momentum": CONDITIONED,
    "cfg_norm_threshold": CONDITIONED,
    "no_batch_cfg": CONDITIONED,
    "temperature": ("lm",),
    "top_k": ("lm",),
    "top_p": ("lm",),
}
"""Other flags act on every model, or are conditions, which `conditions` checks."""

LEAVE_OUT = "leave it out"
RECONSTRUCTS = ("an autoencoder makes nothing up", "--reconstruct FILE encodes and decodes a sound")
WHOLE = ("the model makes whole clips: it was not trained to inpaint", "--init-audio varies a sound")
AS_LONG = ("a reconstruction is as long as what is given", LEAVE_OUT)
ONWARD = "--continue-from FILE goes on from a sound"
WHY = {  # what a reader would ask next: reason and fix by flag and model type
    **{("init_audio", kind): RECONSTRUCTS for kind in AUTOENCODERS},
    **{("seconds", kind): AS_LONG for kind in AUTOENCODERS},
    **{(name, kind): WHOLE for name in ("inpaint_audio", "continue_from") for kind in ("diffusion_cond", "diffusion_uncond")},
    ("init_audio", "lm"): ("a language model has no noise to go back to", ONWARD),
    ("inpaint_audio", "lm"): ("a language model goes from the start to the end", ONWARD),
    ("steps", "lm"): ("a language model takes one step a frame", LEAVE_OUT),
    ("steps", "autoencoder"): ("an autoencoder decodes in one pass", LEAVE_OUT),
    ("cfg_scale", "diffusion_uncond"): ("the model has no conditions to guide by", LEAVE_OUT),
}
SHAPES_GUIDANCE = ("cfg_interval", "cfg_rescale", "apg_scale", "apg_momentum", "cfg_norm_threshold", "no_batch_cfg")


def check_flags(args: argparse.Namespace, config: Any) -> None:
    """Raises ConfigError with every flag that has no effect on a model of this validated config."""
    told = getattr(config, "told", Told())
    model_type = "diffusion_cond_inpaint" if told.frames else config.model_type  # it can be used as one
    problems = [_problem(name, model_type) for name in ACTS_ON if given(args, name) and model_type not in ACTS_ON[name]]
    if model_type in AUTOENCODERS and not args.reconstruct:
        problems.append(Problem((), "an autoencoder makes sounds of sounds", "--reconstruct FILE encodes and decodes one"))
    if model_type in CONDITIONED and len(args.reference) > len(told.references):
        learned = f"learned to take {len(told.references)}" if told.references else "was not trained with references"
        problems.append(Problem((), f"--reference: {len(args.reference)} given, and the model {learned}", LEAVE_OUT))
    if problems:
        raise ConfigError(problems, source=f"--model {args.model}")


def check_together(args: argparse.Namespace) -> None:
    """Raises ConfigError for flags that need or exclude each other on any model."""
    if problems := list(_misfits(args)):
        raise ConfigError(problems)


def check_guidance(args: argparse.Namespace, cfg_scale: float) -> None:
    """Raises ConfigError for flags that shape guidance where there is none."""
    if cfg_scale != 1:
        return
    where = "--cfg-scale 1 is none" if args.cfg_scale is not None else "the model's demos have none"
    names = [name for name in SHAPES_GUIDANCE if given(args, name)]
    if names:
        problems = [Problem((), f"{flag(name)}: acts through guidance, and {where}", "choose another --cfg-scale") for name in names]
        raise ConfigError(problems)


def given(args: argparse.Namespace, name: str) -> bool:
    value = getattr(args, name)
    return value is not None and value is not False and value != []  # 0 is a value


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _problem(name: str, model_type: str) -> Problem:
    known = " and ".join(ACTS_ON[name]) if len(ACTS_ON[name]) < 3 else ", ".join(ACTS_ON[name])
    reason, fix = WHY.get((name, model_type), (f"acts on {known} models, and this one's model_type is {model_type!r}", LEAVE_OUT))
    return Problem((), f"{flag(name)}: {reason}", fix)


def _misfits(args: argparse.Namespace) -> Iterator[Problem]:
    if args.init_noise_level is not None and not args.init_audio:
        yield Problem((), "--init-noise-level: says how far to go from --init-audio, which is missing")
    if args.inpaint_audio and not args.mask:
        yield Problem((), "--inpaint-audio: needs --mask, which says what to make anew")
    if args.mask and not args.inpaint_audio:
        yield Problem((), "--mask: needs --inpaint-audio, of which it is a part")
    if args.continue_from and args.inpaint_audio:
        yield Problem((), "--continue-from: keeps all of a sound, and --inpaint-audio parts of one", "keep one")
    if args.reconstruct:
        for name in ("prompt", "prompts_file", "negative_prompt", "cond"):
            if given(args, name):
                yield Problem((), f"{flag(name)}: --reconstruct makes a sound again, whatever it is called", LEAVE_OUT)
    for name in ("num_quantizers", "latent_noise"):
        if given(args, name) and not args.reconstruct:
            yield Problem((), f"{flag(name)}: acts on --reconstruct, which is missing")
    if args.top_k is not None and args.top_p is not None:
        yield Problem((), "--top-k and --top-p exclude each other", "keep one")
