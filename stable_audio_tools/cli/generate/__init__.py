"""`generate --model FILE or RUN_DIR --prompt TEXT`: audio files from a trained model, each with its settings beside it.

Clip k of a command is made from seed + k alone, so the seed in its settings makes it again without the others.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_audio_tools.cli.device import find_device, find_precision, out_of_memory
from stable_audio_tools.cli.plugins import import_plugins
from stable_audio_tools.configs.errors import ConfigError, Problem

from .flags import configure

if TYPE_CHECKING:
    from torch import nn

    from stable_audio_tools.adapters import Adapter
    from stable_audio_tools.models.pretrained import FoundModel

    from .files import Output
    from .makers import Clip
    from .planning import Plan
    from .wishes import Wish

__all__ = ["configure", "run"]

log = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    args = _complete(args)
    import_plugins(args.plugins)
    from .acts import check_flags, check_together
    from .files import Output
    from .planning import plan
    from .settings import fingerprint, warn_of_other_weights
    from .wishes import read_wishes

    wishes = read_wishes(args)
    out = Output.of(args, len(args.reconstruct) or len(wishes))
    check_together(args)
    _check_audio(args)
    device = find_device(args.device)
    adapters = _adapters(args)
    from stable_audio_tools.models.pretrained import find_model

    found = find_model(args.model, model_config=args.model_config)
    check_flags(args, found.parsed)
    outline = found.outline()
    weights = fingerprint(found.weights)
    planned = plan(args, wishes, outline, found.config, weights)
    out.check(planned.rate, _channels(outline))
    todo = _todo(args, planned, out, wishes)
    if args.from_settings:
        warn_of_other_weights(args.from_settings, weights)
    if not todo:
        return 0
    model = _loaded(found, adapters).to(device, find_precision(args.precision))
    return _make(args, planned, out, todo, model)


def _complete(args: argparse.Namespace) -> argparse.Namespace:
    """The flags with those of `--from-settings`."""
    if args.from_settings:
        from stable_audio_tools.cli.main import Parser

        from .settings import fill_in

        parser = Parser(prog="stable-audio-tools generate", allow_abbrev=False)
        configure(parser)
        args = fill_in(args, parser.parse_args)
    if not args.model:
        raise ConfigError([Problem((), "--model is missing", "name a run's folder, or a file of weights")], source="generate")
    return args


def _check_audio(args: argparse.Namespace) -> None:
    """Whether the audio that was named can be read."""
    from stable_audio_tools.audio.io import probe

    for path in filter(None, (args.init_audio, args.inpaint_audio, args.continue_from, *args.reference, *args.reconstruct)):
        probe(path)


def _adapters(args: argparse.Namespace) -> list[tuple[Adapter, float]]:
    from stable_audio_tools.adapters import AdapterFile, read_adapter

    return [(read_adapter(path), strength) for path, strength in map(AdapterFile.parse, args.adapter)]


def _loaded(found: FoundModel, adapters: Sequence[tuple[Adapter, float]]) -> nn.Module:
    from stable_audio_tools.adapters import merge_adapter

    model = found.load()
    for adapter, strength in adapters:
        log.info("%s", merge_adapter(model, adapter, strength))
    return model


def _channels(model: Any) -> int:
    """Channels of the audio that a model makes."""
    from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder

    if isinstance(model, AudioAutoencoder):
        return model.out_channels
    return model.io_channels if model.pretransform is None else model.pretransform.io_channels


def _todo(args: argparse.Namespace, planned: Plan, out: Output, wishes: Sequence[Wish]) -> list[tuple[Clip, Path]]:
    """The clips that are not there yet, each with its file."""
    paths = out.paths(planned.clips, replacing=args.skip_existing)
    pairs = list(zip(planned.clips, paths, strict=True))
    if not args.skip_existing:
        return pairs
    from .settings import check_same, settings_of

    if args.seed is None and not args.reconstruct and any(wish.seed is None for wish in wishes):
        message = "clips are known again by their seeds, and some have none"
        raise ConfigError([Problem((), message, "add --seed, the one the command had before")], source="--skip-existing")
    for clip, path in pairs:
        if path.exists():
            check_same(path, settings_of(args, planned, clip, {}) | out.settings, seeded=not args.reconstruct)
    todo = [(clip, path) for clip, path in pairs if not path.exists()]
    if len(todo) < len(pairs):
        log.info("%d of %d clips are there already", len(pairs) - len(todo), len(pairs))
    return todo


def _make(args: argparse.Namespace, planned: Plan, out: Output, todo: list[tuple[Clip, Path]], model: nn.Module) -> int:
    """Make and write clips, and print the path of each; what is done stays, whatever happens."""
    done = 0
    try:
        for path in _written(args, planned, out, todo, model):
            print(path, flush=True)
            done += 1
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        _say_interrupted(done, len(todo), out)
        print(f"error: out of memory: {str(error).splitlines()[0]}\n  = {_less_memory(args, len(todo))}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit):
        _say_interrupted(done, len(todo), out)
        raise
    return 0


def _written(args: argparse.Namespace, planned: Plan, out: Output, todo: Sequence[tuple[Clip, Path]], model: nn.Module) -> Iterator[Path]:
    import torch

    from stable_audio_tools import __version__

    from .progress import ClipProgress
    from .settings import settings_of

    progress, size = ClipProgress(len(todo)), args.batch_size
    paths = {id(clip): path for clip, path in todo}
    facts = {"objective": getattr(getattr(model, "objective", None), "name", None), "version": __version__, "torch": torch.__version__}
    facts["device"] = next(model.parameters()).device.type
    try:
        for batch in planned.batches(size, [clip for clip, _ in todo]):
            progress.begin(len(batch))
            audio = planned.make(model, batch, progress)
            progress.clear()
            for clip, made in zip(batch, audio, strict=True):
                settings = settings_of(args, planned, clip, facts) | out.settings
                out.write(paths[id(clip)], made[..., : clip.keep], planned.rate, settings)
                yield paths[id(clip)]
    finally:
        progress.clear()


def _say_interrupted(done: int, count: int, out: Output) -> None:
    if count > 1:
        log.info("%d of %d clips are done, in %s; the same command with --skip-existing goes on", done, count, out.folder)


def _less_memory(args: argparse.Namespace, count: int) -> str:
    ways = ["a shorter --seconds"]
    if min(args.batch_size, count) > 1:
        ways.insert(0, "a smaller --batch-size")
    if args.precision in (None, "fp32"):
        ways.append("--precision bf16")
    return f"try {', '.join(ways)}"
