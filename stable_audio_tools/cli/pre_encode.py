"""`pre-encode`: audio to latents that the `pre_encoded` dataset reads; the same command goes on where it was stopped."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_audio_tools.cli.plugins import add_plugins_flag, import_plugins
from stable_audio_tools.cli.values import whole
from stable_audio_tools.configs.errors import ConfigError, Problem

if TYPE_CHECKING:
    from torch import nn

    from stable_audio_tools.data.latent_shards import ShardFolder
    from stable_audio_tools.inference.latents import LatentEncoder, Stored
    from stable_audio_tools.models.conditioners.pretrained_text import PretrainedTextConditioner
    from stable_audio_tools.models.config import BaseModelConfig
    from stable_audio_tools.training.pre_encode import Job, Source

log = logging.getLogger(__name__)

CHUNK, OVERLAP = 128, 32  # latent frames, of a chunk and of what neighbours share, as in encode_audio
STORED = ("auto", "distribution", "sample", "mean")


def configure(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("the encoder: an autoencoder, or the pretransform of a model")
    model.add_argument("--model", metavar="FILE|RUN_DIR", help="weights that carry their config, the folder of a run, or a published model")
    model.add_argument("--model-config", metavar="FILE", help="in place of --model: its config")
    model.add_argument("--ckpt-path", metavar="FILE", help="with --model-config: its weights, or those of the autoencoder alone")
    model.add_argument("--model-half", action="store_true", help="encode in float16")
    data = parser.add_argument_group("the audio")
    data.add_argument("--dataset-config", required=True, metavar="FILE", help="JSON file of a dataset of audio")
    data.add_argument("--sample-size", type=whole(1), metavar="N", help="samples of a crop (default: as the model config says)")
    data.add_argument("--whole-files", action="store_true", help="in place of crops: each file whole, long ones in overlapping chunks")
    data.add_argument("--chunk-frames", type=whole(2), metavar="N", help=f"latent frames of a chunk (default: {CHUNK})")
    data.add_argument("--chunk-overlap", type=whole(0), metavar="N", help=f"of which neighbours share (default: {OVERLAP})")
    data.add_argument("--crops", type=whole(1), default=1, metavar="N", help="crops of each file (default: 1)")
    data.add_argument("--limit", type=whole(1), metavar="N", help="encode the first N files alone")
    data.add_argument("--seed", type=whole(0), default=42, help="of random crops (default: 42)")
    data.add_argument("--allow-code", action="store_true", help="allow the dataset config to run Python code that it names")
    out = parser.add_argument_group("the latents")
    out.add_argument("--output-path", required=True, metavar="FOLDER", help="where they go; an unfinished folder is gone on with")
    out.add_argument("--is-discrete", action="store_true", help="store tokens")
    out.add_argument(
        "--latents",
        choices=STORED,
        default="auto",
        help="of a variational autoencoder: means and deviations, from which training draws anew at each visit; one draw; or the means "
        "(default: what training on the fly does)",
    )
    out.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="of latents (default: float16)")
    out.add_argument("--text", action="store_true", help="also store what the model's frozen text conditioners make of the captions")
    out.add_argument("--shard-items", type=whole(1), default=256, metavar="N", help="items of a file, and of the work lost when stopped")
    run = parser.add_argument_group("the run")
    run.add_argument("--batch-size", type=whole(1), default=4, metavar="N", help="crops encoded at once (default: 4)")
    run.add_argument("--num-workers", type=whole(0), default=4, metavar="N", help="processes that read audio, for each device (default: 4)")
    run.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="what encodes (default: a GPU if there is one)")
    run.add_argument("--devices", type=whole(1), default=1, metavar="N", help="processes of this machine, each on its own GPU (default: 1)")
    run.add_argument("--verify", type=whole(1), metavar="N", help="afterwards, hold N items against the audio and report the error")
    run.add_argument("--json", action="store_true", help="print the result for machines")
    add_plugins_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    import_plugins(args.plugins)
    kind = _device_kind(args)
    job, config = _job(args)
    texts = _text_conditioners(args, config)
    job.prepare()

    from stable_audio_tools.data.latent_shards import missing_shards, open_shards
    from stable_audio_tools.training.encoding_processes import encode
    from stable_audio_tools.training.stored_texts import store_texts

    try:
        encode(job, kind, processes=args.devices, batch_size=args.batch_size, num_workers=args.num_workers)
    except (OSError, RuntimeError) as error:
        print(f"error: pre-encoding stopped: {error}", file=sys.stderr)
        return 1
    if missing := missing_shards(job.folder, job.details):
        log.info("%s: this process is done; %d shards are other processes'", job.folder, len(missing))
        return 0
    folder = open_shards(job.folder)
    counts = store_texts(folder, texts, config.model.conditioning.default_keys, dtype=job.dtype, device=kind) if texts else {}
    return _finish(args, job, folder, counts)


def _device_kind(args: argparse.Namespace) -> str:
    import torch

    from stable_audio_tools.training.encoding_processes import Place

    found = torch.cuda.device_count()
    if args.device == "cuda" and not found:
        raise ConfigError("no GPU can be used here; leave it out, or choose cpu", "--device cuda")
    kind = "cuda" if found and args.device != "cpu" else "cpu"
    if args.devices > 1 and Place.of_environment().world_size > 1:
        raise ConfigError("this process is one of several that were started together; leave it out", f"--devices {args.devices}")
    if kind == "cuda" and args.devices > found:
        raise ConfigError(f"{found} GPUs are here", f"--devices {args.devices}")
    return kind


def _text_conditioners(args: argparse.Namespace, config: BaseModelConfig) -> dict[str, PretrainedTextConditioner]:
    """Those whose embeddings are to be stored.

    Raises:
        ConfigError: they were asked for, and the model has none.
    """
    from stable_audio_tools.training.stored_texts import text_conditioners

    if not args.text:
        return {}
    if not (found := text_conditioners(config)):
        fix = "leave it out, or name a model that has one: a t5 or clap_text whose network does not train"
        raise ConfigError([Problem((), "the model has no frozen text conditioner", fix)], "--text")
    return found


def _job(args: argparse.Namespace) -> tuple[Job, BaseModelConfig]:
    """What is to be done, and the config of the model that it is for; nothing is written yet.

    Raises:
        ConfigError: something that was asked for cannot be done.
    """
    from stable_audio_tools.training.pre_encode import DTYPES, Job, make_details

    _chunks(args)
    config, load = _model(args)
    source = _source(args, config)
    dataset = source.build()
    encoder = load()
    stored = _stored(args, encoder)
    if source.sample_size is not None and source.sample_size % encoder.downsampling_ratio:
        whole_frames = source.sample_size // encoder.downsampling_ratio * encoder.downsampling_ratio
        fix = f"nearest: {whole_frames or encoder.downsampling_ratio}"
        message = f"is no multiple of the {encoder.downsampling_ratio} samples of a latent frame"
        raise ConfigError([Problem((), message, fix)], f"--sample-size {source.sample_size}")
    settings = {
        "model": args.model or args.ckpt_path or args.model_config,
        "model_half": args.model_half,
        "dtype": args.dtype,
        "chunks": _chunks(args),
    }
    details = make_details(source, dataset, encoder, settings, stored=stored, shard_items=args.shard_items)
    return Job(Path(args.output_path), details, source, dataset, encoder, stored, DTYPES[args.dtype]), config


def _model(args: argparse.Namespace) -> tuple[BaseModelConfig, Callable[[], LatentEncoder]]:
    """The config of the model that was named, and what loads its encoder."""
    from stable_audio_tools.configs.parse import read_json
    from stable_audio_tools.models.factory import parse_model_config
    from stable_audio_tools.models.pretrained import get_pretrained_model

    if (args.model is None) == (args.model_config is None):
        given = "both are given" if args.model else "neither is given"
        fix = "name the encoder by --model MODEL, or by --model-config FILE and --ckpt-path FILE"
        raise ConfigError([Problem((), given, fix)], "--model, --model-config")
    if args.model is not None:
        if args.ckpt_path is not None:
            raise ConfigError("belongs to --model-config; --model names its weights itself", f"--ckpt-path {args.ckpt_path}")
        model, document = get_pretrained_model(args.model)
        return parse_model_config(document, f"config of {args.model}"), lambda: _prepared(args, model)
    document, text = read_json(args.model_config)
    config = parse_model_config(document, args.model_config, text)
    _check_weights(args, config)
    return config, lambda: _loaded(args, config)


def _check_weights(args: argparse.Namespace, config: BaseModelConfig) -> None:
    """Raises ConfigError where weights are needed and not given, or the other way round."""
    part = config.model if config.model_type == "autoencoder" else _pretransform(args, config)
    if args.ckpt_path is None and getattr(part, "needs_checkpoint", True):
        fix = "give its weights by --ckpt-path, or a model that carries them by --model"
        raise ConfigError([Problem((), "the encoder of this config has random weights", fix)], f"--model-config {args.model_config}")
    if args.ckpt_path is not None and not getattr(part, "needs_checkpoint", True):
        raise ConfigError("the encoder of this config has no weights to load; leave it out", f"--ckpt-path {args.ckpt_path}")


def _pretransform(args: argparse.Namespace, config: BaseModelConfig) -> Any:
    """Raises ConfigError where the model has none."""
    if (found := getattr(config.model, "pretransform", None)) is None:
        fix = "name an autoencoder, or a model with a pretransform"
        raise ConfigError([Problem((), "the model has no pretransform that could encode", fix)], f"--model-config {args.model_config}")
    return found


def _loaded(args: argparse.Namespace, config: BaseModelConfig) -> LatentEncoder:
    """The encoder alone of a model config, with its weights."""
    from stable_audio_tools.models.checkpoints import load_into, load_weights

    is_autoencoder = config.model_type == "autoencoder"
    part: Any = config.build() if is_autoencoder else _pretransform(args, config).build(config.sample_rate)
    if args.ckpt_path is not None:
        log.info("%s", load_into(getattr(part, "model", part), load_weights(args.ckpt_path)))
    return _prepared(args, part)


def _prepared(args: argparse.Namespace, model: nn.Module) -> LatentEncoder:
    from stable_audio_tools.inference.latents import Chunks, LatentEncoder

    encoder = LatentEncoder.of(model, Chunks(*chunks) if (chunks := _chunks(args)) else None)
    if encoder is None:
        raise ConfigError("the model is no autoencoder and has no pretransform that could encode", f"--model {args.model}")
    encoder.part.eval().requires_grad_(False)
    if args.model_half:
        encoder.part.half()
    return encoder


def _chunks(args: argparse.Namespace) -> tuple[int, int] | None:
    """Frames of a chunk and of what neighbours share; None: no chunks were asked for.

    Raises:
        ConfigError: they cannot be, or have no effect.
    """
    given = {"--chunk-frames": args.chunk_frames, "--chunk-overlap": args.chunk_overlap}
    if not args.whole_files:
        if idle := [f"{flag} {value}" for flag, value in given.items() if value is not None]:
            raise ConfigError("has no effect without --whole-files", ", ".join(idle))
        return None
    size, overlap = args.chunk_frames or CHUNK, OVERLAP if args.chunk_overlap is None else args.chunk_overlap
    if overlap >= size:
        raise ConfigError(f"chunks of {size} frames cannot share {overlap}; choose fewer", "--chunk-frames, --chunk-overlap")
    return size, overlap


def _source(args: argparse.Namespace, config: BaseModelConfig) -> Source:
    """Raises ConfigError where the dataset holds no audio, or its crops would all be the same."""
    from stable_audio_tools.data.dataset import parse_dataset_config
    from stable_audio_tools.data.metadata_module import require_permission
    from stable_audio_tools.training.pre_encode import Source

    data = parse_dataset_config(args.dataset_config)
    require_permission(getattr(data, "code", ()), args.allow_code)
    if data.dataset_type == "pre_encoded" or getattr(data, "pre_encoded", False):
        raise ConfigError("holds latents already; name a dataset of audio", f"--dataset-config {args.dataset_config}")
    if args.crops > 1 and not getattr(data, "random_crop", False):
        fix = 'set "random_crop": true in the dataset config, or leave it out'
        raise ConfigError([Problem((), "the crops of a file would all be the same", fix)], f"--crops {args.crops}")
    if args.whole_files and (args.crops > 1 or args.sample_size):
        flag = f"--crops {args.crops}" if args.crops > 1 else f"--sample-size {args.sample_size}"
        raise ConfigError("--whole-files makes no crops; leave one of them out", flag)
    size = None if args.whole_files else args.sample_size or config.sample_size
    return Source(data, size, config.sample_rate, config.audio_channels, crops=args.crops, seed=args.seed, limit=args.limit)


def _stored(args: argparse.Namespace, encoder: LatentEncoder) -> Stored:
    """Raises ConfigError where the encoder cannot give what was asked for."""
    if args.is_discrete:
        if args.latents != "auto":
            raise ConfigError("tokens have no distribution; leave it out", f"--latents {args.latents}")
        if not encoder.part.is_discrete:
            raise ConfigError("the encoder makes no tokens; leave it out", "--is-discrete")
        return "tokens"
    if args.latents == "auto":
        return encoder.default
    if not encoder.is_variational:
        raise ConfigError("the encoder is not variational, so there is nothing to choose; leave it out", f"--latents {args.latents}")
    return args.latents


def _finish(args: argparse.Namespace, job: Job, folder: ShardFolder, texts: dict[str, int]) -> int:
    """Say what there is now, and whether it is what the encoder makes."""
    from stable_audio_tools.training.verify_latents import verify

    found = {"folder": str(job.folder), "key": job.details.key, "items": len(folder), "left_out": [list(fault) for fault in folder.bad]}
    size_mb = sum(path.stat().st_size for path in job.folder.iterdir()) / 1e6
    lines = [f"{job.folder}: {len(folder)} items in {job.details.shards} shards, {size_mb:.1f} MB, stored as {job.stored}"]
    found |= {"texts": texts} if texts else {}
    lines += [f"  {count} texts of the conditioner {name}" for name, count in texts.items()]
    lines += [f"  left out: {path}: {cause}" for path, cause in folder.bad]
    verification = verify(job, args.verify) if args.verify else None
    if verification is not None:
        found |= {"verified": verification.passed, "checks": [check.to_dict() for check in verification.checks]}
        lines += verification.lines()
    print(json.dumps(found, indent=2) if args.json else "\n".join(lines))
    return 0 if verification is None or verification.passed else 1
