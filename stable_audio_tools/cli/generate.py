"""`generate --model FILE or RUN_DIR --prompt TEXT`: audio files from a trained model, each with its settings beside it.

Clip k of a command is made from seed + k alone, so the seed in its settings makes it again without the others.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_audio_tools.cli.plugins import add_plugins_flag, import_plugins
from stable_audio_tools.cli.values import number, positive, share, whole
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.configs.suggest import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from stable_audio_tools.diffusion.samplers import Step
    from stable_audio_tools.inference.generation import DiffusionModel

log = logging.getLogger(__name__)

STEPS, CFG_SCALE = 50, 3.0  # chosen: where the model's demo settings do not say
INIT_NOISE_LEVEL = 0.7  # chosen: keeps the course of the sound, changes its character
MODEL_TYPES = ("diffusion_cond", "diffusion_cond_inpaint", "diffusion_uncond")
SUFFIXES = (".wav", ".flac", ".ogg")
OTHER_AUDIO = (".mp3", ".m4a", ".aac", ".opus", ".aif", ".aiff", ".wma")
SLUG = 48  # characters of a prompt that a file name repeats


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="FILE|RUN_DIR", help="weights (safetensors), or the folder of a run")
    add("--adapter", action="append", default=[], metavar="FILE[:STRENGTH]", help="merge this adapter into the model; repeat it for more")
    add("--prompt", action="append", default=[], metavar="TEXT", help="what to make; repeat it for more clips")
    add("--prompts-file", metavar="FILE", help="a text file with one prompt a line")
    add("--negative-prompt", metavar="TEXT", help="what to guide away from")
    add(
        "--cond",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another condition of the model, for all clips; seconds_start is 0 and seconds_total the length unless given",
    )
    add("--seconds", type=positive, metavar="S", help="length of each clip (default: that of the training clips)")
    add("--steps", type=whole(1), metavar="N", help=f"sampler steps (default: as in the model's demos, else {STEPS})")
    add("--cfg-scale", type=number, metavar="X", help=f"guidance, 1 is none (default: as in the model's demos, else {CFG_SCALE:g})")
    add("--sampler", metavar="NAME", help="default: as in the model's demos, else the one for its objective")
    add("--seed", type=whole(0), metavar="N", help="of the first clip, the next has the next seed (default: a fresh one)")
    add("--batch-size", type=whole(1), default=8, metavar="N", help="clips made at once; it changes none of them (default: 8)")
    add("--init-audio", metavar="FILE", help="make variations of this sound")
    add(
        "--init-noise-level",
        type=share,
        metavar="X",
        help=f"how far from --init-audio: above 0, nearly the same, to 1, unrelated (default: {INIT_NOISE_LEVEL})",
    )
    add("--inpaint-audio", metavar="FILE", help="keep this sound but for the parts that --mask names")
    add(
        "--mask", type=_part, action="append", metavar="START:END", help="seconds of --inpaint-audio to make anew; repeat it for more parts"
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: the GPU if there is one)")
    add("--out", default="generated", metavar="FILE|DIR", help="an audio file for one clip, or a folder (default: generated)")
    add_plugins_flag(parser)


@dataclass(frozen=True)
class Request:
    """What to make, after the model's config has had its say.

    metadata: of each clip. negative: of each clip, or None. sample_size: samples to generate; keep: samples to write.
    """

    metadata: list[dict[str, Any]]
    negative: list[dict[str, Any]] | None
    sample_size: int
    keep: int
    steps: int
    cfg_scale: float
    sampler: str
    seeds: list[int]


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    import_plugins(args.plugins)
    prompts = _prompts(args)
    out = _check_out(args.out, max(1, len(prompts)))
    if args.init_noise_level is not None and args.init_audio is None:
        raise ConfigError("says how far to go from --init-audio, which is missing", source="--init-noise-level")
    if bool(args.inpaint_audio) != bool(args.mask):
        lacking = "--mask, which says what to make anew" if args.inpaint_audio else "--inpaint-audio, of which it is a part"
        raise ConfigError(f"needs {lacking}", source="--inpaint-audio" if args.inpaint_audio else "--mask")
    for path in filter(None, (args.init_audio, args.inpaint_audio)):
        from stable_audio_tools.audio.io import probe

        probe(path)  # before weights are read
    from stable_audio_tools.adapters import AdapterFile, merge_adapter, read_adapter
    from stable_audio_tools.models.pretrained import get_pretrained_model

    adapters = [(read_adapter(path), strength) for path, strength in map(AdapterFile.parse, args.adapter)]
    model, config = get_pretrained_model(args.model)
    if config["model_type"] not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise ConfigError(f"model_type is {config['model_type']!r}; generate makes audio with {known} models", f"--model {args.model}")
    for adapter, strength in adapters:
        log.info("%s", merge_adapter(model, adapter, strength))
    request = _request(args, prompts, model, config)  # type: ignore[arg-type]
    for path in _generate(args, request, model, out):  # type: ignore[arg-type]
        print(path)
    return 0


# what was asked for


def _prompts(args: argparse.Namespace) -> list[str]:
    prompts = list(args.prompt)
    if args.prompts_file:
        try:
            text = Path(args.prompts_file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"cannot be read: {reason}", source=f"--prompts-file {args.prompts_file}") from None
        found = [line.strip() for line in text.splitlines() if line.strip()]
        if not found:
            raise ConfigError("has no prompt; write one a line", source=f"--prompts-file {args.prompts_file}")
        prompts += found
    return prompts


def _check_out(text: str, count: int) -> Path:
    """The output path, if it can become what it says: a file's folder exists, a folder can be made."""
    out, source = Path(text), f"--out {text}"
    if out.suffix.lower() in OTHER_AUDIO:
        raise ConfigError(f"cannot write {out.suffix} files; name one that ends in {', '.join(SUFFIXES)}, or a folder", source=source)
    if out.suffix.lower() in SUFFIXES:
        if count > 1:
            raise ConfigError(f"one file for {count} clips; name a folder", source=source)
        if out.is_dir():
            raise ConfigError("this is a folder; name a file, or a folder without such an ending", source=source)
        if out.with_suffix(".json").exists() and not out.exists():
            raise ConfigError(f"its settings would replace {out.with_suffix('.json')}; choose another name", source=source)
        folder = out.parent
    else:
        folder = out
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        cause = f"{existing} cannot be written to" if existing.is_dir() else f"{existing} is a file"
        raise ConfigError([Problem((), cause, "name another place")], source=source)
    return out


def _part(text: str) -> tuple[float, float]:
    """`START:END` in seconds."""
    try:
        start, end = (float(number) for number in text.split(":"))
    except ValueError:
        start = end = math.nan
    if not 0 <= start < end < math.inf:
        raise argparse.ArgumentTypeError(f"expected START:END in seconds, such as 1.5:3, got {text!r}")
    return start, end


def _request(args: argparse.Namespace, prompts: list[str], model: DiffusionModel, config: Mapping[str, Any]) -> Request:
    from stable_audio_tools.diffusion.samplers import find_sampler

    demo = (config.get("training") or {}).get("demo") or {}
    rate, trained = config["sample_rate"], config["sample_size"]
    keep = max(1, round(args.seconds * rate)) if args.seconds else trained
    metadata = _metadata(args, prompts, model, config, keep / rate)
    # A model that is told how long a sound is was trained on whole clips that end in silence, so it gets one.
    told = "seconds_total" in metadata[0]
    sampler = args.sampler or demo.get("sampler_type") or model.objective.default_sampler
    find_sampler(sampler, model.objective)
    seed = args.seed if args.seed is not None else secrets.randbelow(2**31)
    if args.cfg_scale is not None and not hasattr(model, "conditioner"):
        raise ConfigError("the model has no conditions to guide by", source="--cfg-scale")
    _check_mask(args, model, keep / rate)
    cfg_scale = args.cfg_scale if args.cfg_scale is not None else float(next(iter(demo.get("demo_cfg_scales") or ()), CFG_SCALE))
    return Request(
        metadata=metadata,
        negative=_negative(args, metadata, cfg_scale),
        sample_size=max(keep, trained) if told else keep,
        keep=keep,
        steps=args.steps or demo.get("demo_steps") or STEPS,
        cfg_scale=cfg_scale,
        sampler=sampler,
        seeds=[seed + index for index in range(len(metadata))],
    )


def _metadata(
    args: argparse.Namespace, prompts: list[str], model: DiffusionModel, config: Mapping[str, Any], seconds: float
) -> list[dict[str, Any]]:
    """The metadata of each clip: exactly what the model's conditioners read.

    Raises:
        ConfigError: a condition is missing, or given to a model that has none of its name.
    """
    source, readable = f"--model {args.model}", {}
    if conditioner := getattr(model, "conditioner", None):
        readable = {name: {name, conditioner.default_keys.get(name, name)} for name in conditioner.conditioners}
    known = set().union(*readable.values())
    given = dict(_key_value(text) for text in args.cond)
    problems = [
        Problem((), f"--cond {key}: the model has no such condition", did_you_mean(key, sorted(known))) for key in given if key not in known
    ]
    if prompts and "prompt" not in known:
        problems.append(
            Problem((), "--prompt: the model has no condition of that name", f"its conditions: {', '.join(readable) or 'none'}")
        )
    if prompts and "prompt" in given:
        problems.append(Problem((), "--cond prompt: given by --prompt too", "keep one"))
    shared = {key: value for key, value in _times(seconds, config).items() if key in known} | given
    missing = [name for name, keys in readable.items() if not keys & (set(shared) | ({"prompt"} if prompts else set()))]
    if missing:
        fix = " ".join("--prompt TEXT" if name == "prompt" else f"--cond {name}=VALUE" for name in missing)
        problems.append(Problem((), f"its conditions are {', '.join(readable)}; missing: {', '.join(missing)}", f"add {fix}"))
    if problems:
        raise ConfigError(problems, source=source)
    return [shared | {"prompt": prompt} for prompt in prompts] or [shared]


def _times(seconds: float, config: Mapping[str, Any]) -> dict[str, Any]:
    """seconds_start and seconds_total; whole ones for conditioners that count them."""
    conditioners = (config["model"].get("conditioning") or {}).get("configs", ())
    counts = any(entry["id"] == "seconds_total" and entry["type"] == "int" for entry in conditioners)
    return {"seconds_start": 0, "seconds_total": math.ceil(seconds) if counts or seconds == int(seconds) else seconds}


def _key_value(text: str) -> tuple[str, Any]:
    """`key=value`, where the value is JSON if it can be, else text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"expected KEY=VALUE, got {text!r}", source="--cond")
    try:
        return key.strip(), json.loads(value)
    except ValueError:
        return key.strip(), value


def _negative(args: argparse.Namespace, metadata: list[dict[str, Any]], cfg_scale: float) -> list[dict[str, Any]] | None:
    if args.negative_prompt is None:
        return None
    if "prompt" not in metadata[0]:
        raise ConfigError("the model has no prompt to guide away from", source="--negative-prompt")
    if cfg_scale == 1:
        raise ConfigError("acts through guidance, and --cfg-scale 1 is none; choose another", source="--negative-prompt")
    return [item | {"prompt": args.negative_prompt} for item in metadata]


def _check_mask(args: argparse.Namespace, model: DiffusionModel, seconds: float) -> None:
    from stable_audio_tools.inference.generation import inpaints

    if args.inpaint_audio and not inpaints(model):
        raise ConfigError("the model makes whole clips: it was not trained to inpaint", source="--inpaint-audio")
    for start, end in args.mask or ():
        if start >= seconds:
            raise ConfigError(f"the clip ends at {seconds:g} s; --seconds makes it longer", f"--mask {start:g}:{end:g}")


# the clips


def _generate(args: argparse.Namespace, request: Request, model: DiffusionModel, out: Path) -> Iterator[Path]:
    """Make and save all clips, batch by batch; gives the path of each."""
    from stable_audio_tools.audio.io import save_audio

    model.to(_device(args.device))
    given = _given_audio(args, request, model)
    count = len(request.metadata)
    for start in range(0, count, args.batch_size):
        chosen = slice(start, start + args.batch_size)
        progress = _progress(f"clips {start + 1} to {min(chosen.stop, count)} of {count}", request.steps)
        batch = _batch(request, chosen, model, **given, callback=progress)
        for index, clip in enumerate(batch[..., : request.keep].cpu(), start):
            path = _path(out, request.metadata[index].get("prompt", "clip"), request.seeds[index])
            save_audio(path, clip, model.sample_rate)
            _write_settings(path, _settings(args, request, model, index, given))
            yield path


def _given_audio(args: argparse.Namespace, request: Request, model: DiffusionModel) -> dict[str, Any]:
    """The arguments of generation that hold audio."""
    from stable_audio_tools.audio.io import load_audio

    given: dict[str, Any] = {}
    for name in ("init_audio", "inpaint_audio"):
        if path := getattr(args, name):
            audio, rate = load_audio(path, sample_rate=model.sample_rate, frames=request.sample_size)
            given[name] = (rate, audio)
    if args.init_audio:
        given["init_noise_level"] = INIT_NOISE_LEVEL if args.init_noise_level is None else args.init_noise_level
    if args.inpaint_audio:
        given["regenerate_s"] = args.mask
    return given


def _batch(request: Request, chosen: slice, model: DiffusionModel, **options: Any) -> Tensor:
    """The chosen clips (B, C, T), by the function that is for this kind of model."""
    from stable_audio_tools.inference import generation
    from stable_audio_tools.models.unconditional_diffusion import UnconditionalDiffusion

    seeds = request.seeds[chosen]
    options |= {"steps": request.steps, "sample_size": request.sample_size, "seed": seeds, "sampler_type": request.sampler}
    if isinstance(model, UnconditionalDiffusion):
        return generation.generate_diffusion_uncond(model, batch_size=len(seeds), **options)
    negative = request.negative[chosen] if request.negative else None
    options |= {"cfg_scale": request.cfg_scale, "conditioning": request.metadata[chosen], "negative_conditioning": negative}
    if generation.inpaints(model):
        return generation.generate_diffusion_cond_inpaint(model, **options)
    return generation.generate_diffusion_cond(model, **options)


def _device(asked: str) -> str:
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no GPU can be used here; leave it out, or choose cpu", source="--device cuda")
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked


def _progress(what: str, steps: int) -> Callable[[Step], None] | None:
    """Shows how far the sampler is, on a terminal."""
    if not sys.stderr.isatty():
        log.info("%s", what)
        return None

    def show(step: Step) -> None:
        print(f"\r{what}: step {step.index + 1} of {steps}", end="\n" if step.index + 1 == steps else "", file=sys.stderr, flush=True)

    return show


def _path(out: Path, prompt: str, seed: int) -> Path:
    """Where a clip goes; in a folder never over an earlier one."""
    named = out.suffix.lower() in SUFFIXES
    folder = out.parent if named else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder: {error.strerror}", source=f"--out {out}") from None
    if named:
        return out
    words = re.sub(r"[^\w#]+", "_", prompt.lower()).strip("_")[:SLUG].rstrip("_") or "clip"
    stem = f"{words}_seed{seed}"
    names = [f"{stem}.wav", *(f"{stem}_{number}.wav" for number in range(2, 10_000))]
    return next(folder / name for name in names if not (folder / name).exists())


def _settings(args: argparse.Namespace, request: Request, model: DiffusionModel, index: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """What repeats the clip."""
    from stable_audio_tools import __version__

    conditions = dict(request.metadata[index])
    settings = {
        "model": args.model,
        "adapters": args.adapter or None,
        "prompt": conditions.pop("prompt", None),
        "conditions": conditions or None,
        "negative_prompt": args.negative_prompt,
        "seed": request.seeds[index],
        "seconds": request.keep / model.sample_rate,
        "sample_rate": model.sample_rate,
        "steps": request.steps,
        "cfg_scale": request.cfg_scale if hasattr(model, "conditioner") else None,
        "sampler": request.sampler,
        "objective": model.objective.name,
        "init_audio": args.init_audio,
        "init_noise_level": given.get("init_noise_level"),
        "inpaint_audio": args.inpaint_audio,
        "mask": [f"{start:g}:{end:g}" for start, end in args.mask] if args.mask else None,
        "version": __version__,
    }
    return {key: value for key, value in settings.items() if value is not None}


def _write_settings(audio: Path, settings: Mapping[str, Any]) -> None:
    path = audio.with_suffix(".json")
    try:
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", source=str(path)) from None
