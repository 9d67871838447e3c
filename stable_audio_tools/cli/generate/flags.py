"""The flags of `generate`. None or nothing stands for "not given", so that a settings file and the model can fill it in."""

from __future__ import annotations

import argparse
import math

from stable_audio_tools.cli.device import PRECISIONS, device_name
from stable_audio_tools.cli.plugins import add_plugins_flag
from stable_audio_tools.cli.values import not_negative, number, positive, share, whole

STEPS, CFG_SCALE = 50, 3.0  # chosen: where the model's demo settings do not say
INIT_NOISE_LEVEL = 0.7  # chosen: keeps the course of the sound, changes its character
FORMATS = ("wav", "flac", "ogg", "mp3")
NORMALIZE = ("over", "always", "never")
BATCH_SIZE = 8


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what to make").add_argument
    add("--model", metavar="FILE|RUN_DIR", help="weights (safetensors, or a training checkpoint), the folder of a run, or a hub repository")
    add("--model-config", metavar="FILE", help="the model's config, where the weights neither carry it nor have it beside them")
    add("--adapter", action="append", default=[], metavar="FILE[:STRENGTH]", help="merge this adapter into the model; repeat it for more")
    add("--prompt", action="append", default=[], metavar="TEXT", help="what to make; repeat it for more clips")
    lines = "prompt, negative_prompt, seconds, seed, name and conditions"
    add("--prompts-file", metavar="FILE", help=f"many clips: .txt with a prompt a line, or .jsonl or .csv with {lines} of each")
    add("--negative-prompt", metavar="TEXT", help="what to guide away from")
    add(
        "--cond",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another condition of the model, for all clips; seconds_start is 0 and seconds_total the length unless given",
    )
    add("--seconds", type=positive, metavar="S", help="length of each clip (default: that of the training clips)")
    add("--seed", type=whole(0), metavar="N", help="of the first clip, the next has the next seed (default: a fresh one)")
    add("--from-settings", metavar="FILE", help="the settings that lie beside a clip: makes it again; other flags change them")
    _audio_flags(parser)
    _sampling_flags(parser)
    _guidance_flags(parser)
    _language_flags(parser)
    _output_flags(parser)
    add = parser.add_argument_group("the machine").add_argument
    add("--device", type=device_name, default="auto", metavar="NAME", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    add("--precision", choices=tuple(PRECISIONS), help="of weights and activations: bf16 and fp16 take half the memory (default: fp32)")
    add("--half", action="store_const", const="fp16", dest="precision", help="short for --precision fp16")
    at_once = f"clips made at once; it changes them by rounding at most (default: {BATCH_SIZE})"
    add("--batch-size", type=whole(1), default=BATCH_SIZE, metavar="N", help=at_once)
    add_plugins_flag(parser)


def _audio_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("audio to start from").add_argument
    add("--init-audio", metavar="FILE", help="make variations of this sound")
    add(
        "--init-noise-level",
        type=share,
        metavar="X",
        help=f"how far from --init-audio: above 0, nearly the same, to 1, unrelated (default: {INIT_NOISE_LEVEL})",
    )
    add("--inpaint-audio", metavar="FILE", help="keep this sound but for the parts that --mask names")
    anew = "seconds of --inpaint-audio to make anew; repeat it for more parts"
    add("--mask", type=_part, action="append", default=[], metavar="START:END", help=anew)
    add("--continue-from", metavar="FILE", help="keep this sound and go on to --seconds, with an inpainting or a language model")
    like = "a sound that stands in front of each clip, for a model that was trained with references; repeat it for more kinds"
    add("--reference", action="append", default=[], metavar="FILE", help=like)
    add("--reconstruct", nargs="+", default=[], metavar="FILE", help="encode and decode these sounds, with an autoencoder")
    add("--num-quantizers", type=whole(1), metavar="N", help="of --reconstruct: use the first N codebooks alone (default: all)")
    add("--latent-noise", type=not_negative, metavar="X", help="of --reconstruct: deviation of noise added to the latents (default: 0)")


def _sampling_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sampling by diffusion").add_argument
    add("--steps", type=whole(1), metavar="N", help=f"sampler steps (default: as in the model's demos, else {STEPS})")
    add("--sampler", metavar="NAME", help="default: as in the model's demos, else the one for its objective")
    add("--sampler-option", action="append", default=[], metavar="KEY=VALUE", help="an option of the sampler, such as eta=0.5 of v-ddim")


def _guidance_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("guidance by conditions").add_argument
    strength = f"strength, 1 is none (default: as in the model's demos, else {CFG_SCALE:g}, of language models 1)"
    add("--cfg-scale", type=number, metavar="X", help=strength)
    add("--cfg-interval", type=_noise_levels, metavar="LOW:HIGH", help="noise levels between which it acts (default: 0:1, all)")
    add("--cfg-rescale", type=share, metavar="X", help="bring its standard deviation back by this share, up to 1 (default: the model's)")
    add("--apg-scale", type=share, metavar="X", help="take away this share, up to 1, of what oversaturates (default: 0)")
    add("--apg-momentum", type=_damping, metavar="X", help="share of earlier steps' guidance that is added, such as -0.5 (default: 0)")
    add("--cfg-norm-threshold", type=positive, metavar="X", help="largest norm of the guidance of a clip (default: no limit)")
    add("--no-batch-cfg", action="store_true", help="run its two passes one after the other: slower, with less memory")


def _language_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("language models (default: as in the model's demos)").add_argument
    add("--temperature", type=not_negative, metavar="X", help="of the tokens' distribution; 0: always the most likely one")
    add("--top-k", type=whole(1), metavar="N", help="draw from that many of the most likely tokens")
    add("--top-p", type=share, metavar="X", help="draw from the most likely tokens that together have this probability")


def _output_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("files").add_argument
    add("--out", default="generated", metavar="FILE|DIR", help="an audio file for one clip, or a folder (default: generated)")
    add("--format", choices=FORMATS, help="of files in a folder (default: wav)")
    add("--bits", type=int, choices=(16, 24, 32), help="of a sample: 16 or 24 of wav and flac, 32 (float) of wav (default: 16)")
    peak = "bring the peak to full scale where it lies over it, always, or never, which limits it (default: over)"
    add("--normalize", choices=NORMALIZE, help=peak)
    add("--loudness", type=number, metavar="LUFS", help="bring every clip to this loudness, such as -16")
    add("--skip-existing", action="store_true", help="go on where an interrupted command stopped: leave out clips that are there")


def _part(text: str) -> tuple[float, float]:
    """`START:END` in seconds."""
    start, end = _pair(text)
    if not 0 <= start < end < math.inf:
        raise argparse.ArgumentTypeError(f"expected START:END in seconds, such as 1.5:3, got {text!r}")
    return start, end


def _noise_levels(text: str) -> tuple[float, float]:
    """`LOW:HIGH`."""
    low, high = _pair(text)
    if not 0 <= low <= high < math.inf:
        raise argparse.ArgumentTypeError(f"expected LOW:HIGH, noise levels such as 0.2:0.9, got {text!r}")
    return low, high


def _pair(text: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(":"))
    except ValueError:
        return math.nan, math.nan
    return first, second


def _damping(text: str) -> float:
    value = number(text)
    if not -1 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between -1 and 1, got {text!r}")
    return value
