"""A tiny sample of everything that a model config can name, and for each family how a member is built and run.

`SAMPLES` is what a newcomer adds to: one entry per member, under the name in the JSON; a further variant is "name: what is special".
"<...>" in a sample stands for a file or folder that `make_file` writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
from safetensors import safe_open
from torch import Tensor, nn

from stable_audio_tools.configs.base import Family, StrictModel
from stable_audio_tools.models.autoencoders import DECODERS, ENCODERS
from stable_audio_tools.models.bottlenecks import BOTTLENECKS
from stable_audio_tools.models.conditioners import CONDITIONERS
from stable_audio_tools.models.config import ModelConfig
from stable_audio_tools.models.denoisers import DENOISERS, DIFFAE_DENOISERS, UNCOND_DENOISERS
from stable_audio_tools.models.discriminators import DISCRIMINATORS
from stable_audio_tools.models.discriminators.arc import ARC_HEADS
from stable_audio_tools.models.pretransforms import PRETRANSFORMS
from stable_audio_tools.training.losses.terms import bottleneck_terms

BATCH, FRAMES, COND_DIM, SAMPLE_RATE = 2, 8, 8, 8000
Outputs = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sample:
    """One member's config, and a size in it that does not fit.

    wrong: changes by path, such as {"config.strides": [4]}. place, says: where that must be reported, and words of message or fix.
    silent: trained parameters, by the beginning of their names, that get no gradient here, and why.
    cut: audio samples that decoding leaves out at the end, which odd strides do.
    slow: its sizes are fixed, and not small.
    """

    config: dict[str, Any]
    wrong: dict[str, Any]
    place: str
    says: str
    silent: Mapping[str, str] = field(default_factory=dict)
    cut: int = 0
    slow: bool = False


@dataclass(frozen=True)
class Kind:
    """How the members of one family are handled alike.

    annotation: what their JSON is validated against. names: the members.
    build: the module of a validated config. run: its outputs. shapes: those that they must have.
    """

    annotation: Any
    names: tuple[str, ...]
    build: Callable[[Any], nn.Module]
    run: Callable[[Any, Any, torch.dtype], Outputs]
    shapes: Callable[[Any], Shapes]


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def randomise(module: nn.Module) -> None:
    """Branches that start at zero would hide what is wrong in them."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.copy_(float(parameter.ndim == 1) + 0.2 * torch.randn(parameter.shape, generator=generator))


# ---- families ----


def run_encoder(module: Any, config: Any, dtype: torch.dtype) -> Outputs:
    return {"latents": module(noise(BATCH, config.in_channels, FRAMES * config.downsampling_ratio, dtype=dtype))}


def run_decoder(module: Any, config: Any, dtype: torch.dtype) -> Outputs:
    return {"audio": module(noise(BATCH, config.in_channels, FRAMES, dtype=dtype))}


def run_bottleneck(module: Any, config: Any, dtype: torch.dtype) -> Outputs:
    latents, info = module.encode(noise(BATCH, config.encoder_channels(4), FRAMES, dtype=dtype), return_info=True)
    return {
        "latents": latents,
        "for the decoder": module.decode(latents),
        **{f"loss {k}": v for k, v in bottleneck_terms(info, {}).items()},
    }


def run_pretransform(module: Any, config: Any, dtype: torch.dtype) -> Outputs:
    audio = noise(BATCH, config.io_channels, FRAMES * config.downsampling_ratio, dtype=dtype)
    tokens = {}
    if config.is_discrete:
        tokens = {"tokens": module.tokenize(audio)}
        tokens["audio of the tokens"] = module.decode_tokens(tokens["tokens"]).to(dtype)
    if config.type == "audiocraft_pretrained":  # its publisher gives it tokens alone
        return tokens
    latents = module.encode(audio)
    return {"latents": latents, "audio": module.decode(latents), **tokens}


def pretransform_shapes(config: Any) -> Shapes:
    audio = (BATCH, config.io_channels, FRAMES * config.downsampling_ratio)
    tokens = {"tokens": (BATCH, config.num_quantizers, FRAMES), "audio of the tokens": audio} if config.is_discrete else {}
    if config.type == "audiocraft_pretrained":
        return tokens
    return {"latents": (BATCH, config.encoded_channels, FRAMES), "audio": audio, **tokens}


VALUES: dict[str, list[Any]] = {
    "int": [3, 7],
    "number": [0.25, 1],
    "list": ["jazz", "rock"],
    "bytes": ["a bell", ""],
    "t5": ["a soft bell", "drum"],
    "clap_text": ["a soft bell", "drum"],
    "clap_audio": [noise(1, 4000, seed=1), noise(2, 4000, seed=2)],
    "lut": ["a soft bell", "drum"],
    "phoneme": [["HH", "AH0"], ["B"]],
    "pretransform": [noise(1, 16, seed=1), noise(1, 16, seed=2)],
    "source_mix": [{"drums": noise(1, 16, seed=1)}, {"drums": noise(1, 16, seed=2), "bass": noise(1, 16, seed=3)}],
}
TOKENS = {"bytes": 6, "t5": 5, "lut": 5, "phoneme": 2, "pretransform": 2, "source_mix": 2}
"""Tokens or frames of each, for the values above; 1 where it makes one vector."""


def build_conditioner(config: Any) -> nn.Module:
    """By every route its form permits."""
    needs = {"pretransform": None, "sample_rate": SAMPLE_RATE}
    return config.build(COND_DIM, tokens=True, pooled=config.form == "vector", **{name: needs[name] for name in config.needs})


def run_conditioner(module: Any, config: Any, dtype: torch.dtype) -> Outputs:
    made = module(module.prepare(VALUES[config.type]))
    return {name: value for name, value in made._asdict().items() if value is not None}


def conditioner_shapes(config: Any) -> Shapes:
    count = TOKENS.get(config.type, 1)
    if config.form == "signal":
        return {"tensor": (BATCH, COND_DIM, count), "mask": (BATCH, count)}
    pooled = {"pooled": (BATCH, COND_DIM)} if config.form == "vector" else {}
    null = {"null": (1, COND_DIM)} if config.type == "bytes" and pooled else {}
    return {"tensor": (BATCH, count, COND_DIM), "mask": (BATCH, count), **pooled, **null}


ROUTES: dict[str, tuple[str, Callable[[int, int], tuple[int, ...]]]] = {
    "cross_attention_cond_ids": ("cross_attn_cond", lambda width, frames: (BATCH, 3, width)),
    "global_cond_ids": ("global_cond", lambda width, frames: (BATCH, width)),
    "input_concat_ids": ("input_concat_cond", lambda width, frames: (BATCH, width, frames)),
    "prepend_cond_ids": ("prepend_cond", lambda width, frames: (BATCH, 2, width)),
}


def noisy_shape(config: Any) -> tuple[int, ...]:
    return (BATCH, config.io_channels, -(-max(FRAMES, config.min_frames) // config.frame_multiple[1]) * config.frame_multiple[1])


def run_denoiser(module: Any, config: Any, dtype: torch.dtype) -> Outputs:
    """Every open route has a condition."""
    shape = noisy_shape(config)
    open_routes = {key: width.value for key, width in config.widths().items() if width.value}
    inputs = {ROUTES[key][0]: noise(*ROUTES[key][1](width, shape[2]), dtype=dtype, seed=2) for key, width in open_routes.items()}
    return {"prediction": module(noise(*shape, dtype=dtype), torch.tensor([0.2, 0.9]), **inputs)}


def run_unconditional(module: Any, config: Any, dtype: torch.dtype) -> Outputs:
    return {"prediction": module(noise(*noisy_shape(config), dtype=dtype), torch.tensor([0.2, 0.9]))}


def run_diffusion_decoder(module: Any, config: Any, dtype: torch.dtype) -> Outputs:
    shape = noisy_shape(config)
    latents = noise(BATCH, config.cond_channels[1], shape[2], dtype=dtype, seed=2)
    return {"prediction": module(noise(*shape, dtype=dtype), torch.tensor([0.2, 0.9]), input_concat_cond=latents)}


def prediction_shapes(config: Any) -> Shapes:
    return {"prediction": noisy_shape(config)}


def run_discriminator(module: Any, config: Any, dtype: torch.dtype) -> Outputs:
    reals, fakes = (noise(BATCH, 2, max(512, config.min_samples), dtype=dtype, seed=seed) for seed in (1, 2))
    adversarial, features = module.generator_loss(reals, fakes)
    return {"discriminator": module.discriminator_loss(reals, fakes), "adversarial": adversarial, "features": features}


HEAD_WIDTH, HEAD_TOKENS = 32, 64


def run_head(module: Any, config: Any, dtype: torch.dtype) -> Outputs:
    return {"scores": module(noise(BATCH, HEAD_WIDTH, HEAD_TOKENS, dtype=dtype))}


def head_shapes(config: Any) -> Shapes:
    return {"scores": (BATCH, 1, HEAD_TOKENS // 16 - 3 if config.type == "conv" else HEAD_TOKENS // 4)}


def run_model(module: Any, config: Any, dtype: torch.dtype) -> Outputs:
    """What training asks of each type of model."""
    audio = noise(BATCH, config.audio_channels, config.sample_size, dtype=dtype)
    t = torch.tensor([0.2, 0.9])
    if config.model_type == "autoencoder":
        return {"out": module.decode(module.encode(audio, sample=False))}
    if config.model_type == "diffusion_autoencoder":
        return {"out": module(audio, t, module.encode(audio))}
    if config.model_type == "diffusion_uncond":
        return {"out": module(audio, t)}
    conditions = module.conditioner([{"prompt": "a bell", "seconds": 1}, {"prompt": "", "seconds": 2}], "cpu")
    if config.model_type == "lm":
        logits, mask = module.compute_logits(module.pretransform.tokenize(audio), conditions)
        return {"out": logits.masked_fill(~mask[..., None], 0)}
    latents = module.pretransform.encode(audio)
    beside = {"inpaint_mask": torch.ones_like(latents[:, :1]), "inpaint_masked_input": latents}
    conditions |= {name: [signal, None] for name, signal in beside.items() if config.model_type == "diffusion_cond_inpaint"}
    return {"out": module(latents, t, conditions)}


def model_shapes(config: Any) -> Shapes:
    if config.model_type == "lm":
        tokens = config.model.pretransform
        return {"out": (BATCH, tokens.num_quantizers, config.sample_size // tokens.downsampling_ratio, tokens.codebook_size)}
    if config.model_type.startswith("diffusion_cond"):
        return {"out": (BATCH, config.model.io_channels, config.sample_size // config.model.downsampling_ratio)}
    return {"out": (BATCH, config.audio_channels, config.sample_size)}


def kind(family: Family, build: Callable[[Any], nn.Module], run: Any, shapes: Callable[[Any], Shapes]) -> Kind:
    return Kind(Annotated[StrictModel, family], family.names, build, run, shapes)


def model_types() -> tuple[str, ...]:
    members = get_args(get_args(ModelConfig)[0])
    return tuple(name for member in members for name in get_args(member.model_fields["model_type"].annotation))


KINDS: dict[str, Kind] = {
    "encoder": kind(ENCODERS, lambda c: c.build(), run_encoder, lambda c: {"latents": (BATCH, c.out_channels, FRAMES)}),
    "decoder": kind(
        DECODERS, lambda c: c.build(), run_decoder, lambda c: {"audio": (BATCH, c.out_channels, FRAMES * c.downsampling_ratio)}
    ),
    "bottleneck": kind(
        BOTTLENECKS,
        lambda c: c.build(),
        run_bottleneck,
        lambda c: {"latents": (BATCH, 4, FRAMES), "for the decoder": (BATCH, c.decoder_channels(4), FRAMES)},
    ),
    "pretransform": kind(PRETRANSFORMS, lambda c: c.build(SAMPLE_RATE), run_pretransform, pretransform_shapes),
    "conditioner": kind(CONDITIONERS, build_conditioner, run_conditioner, conditioner_shapes),
    "denoiser": kind(DENOISERS, lambda c: c.build(), run_denoiser, prediction_shapes),
    "unconditional denoiser": kind(UNCOND_DENOISERS, lambda c: c.build(), run_unconditional, prediction_shapes),
    "diffusion decoder": kind(DIFFAE_DENOISERS, lambda c: c.build(), run_diffusion_decoder, prediction_shapes),
    "discriminator": kind(
        DISCRIMINATORS,
        lambda c: c.build(SAMPLE_RATE, 2),
        run_discriminator,
        lambda c: dict.fromkeys(("discriminator", "adversarial", "features"), ()),
    ),
    "discriminator head": kind(ARC_HEADS, lambda c: c.build(HEAD_WIDTH), run_head, head_shapes),
    "model": Kind(ModelConfig, model_types(), lambda c: c.build(), run_model, model_shapes),
}


# ---- samples ----

OOBLECK = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "use_snake": True}
SEANET = {"n_filters": 4, "dimension": 3, "ratios": [2, 3], "lstm": 1}
TAAE = {"channels": 64, "c_mults": [2, 2], "strides": [2, 4], "transformer_depths": [1, 1], "sliding_window": [3, 4]}
LOCAL = {"embed_dims": [16, 32], "heads": [2, 4], "depths": [1, 1], "ratios": [2, 3], "local_attn_window_size": 8}
RVQ = {"dim": 4, "codebook_size": 16, "num_quantizers": 2}
DAC_RVQ = {"input_dim": 4, "n_codebooks": 2, "codebook_size": 16, "codebook_dim": 2}
TRANSFORMER = {"embed_dim": 32, "depth": 2, "num_heads": 2}
ADP = {
    "in_channels": 4,
    "channels": 16,
    "multipliers": [1, 2, 2],
    "factors": [2, 2],
    "num_blocks": [1, 1],
    "attentions": [0, 1],
    "attention_heads": 2,
    "attention_multiplier": 2,
    "resnet_groups": 4,
}
DAU = {"depth": 3, "n_attn_layers": 1, "channels": [32, 32, 32], "strides": [2, 2]}
PATCHED = {"type": "patched", "config": {"channels": 1, "patch_size": 8}}


def part(name: str, place: str, says: str, wrong: dict[str, Any], silent: Mapping[str, str] | None = None, **config: Any) -> Sample:
    """A sample of the form {"type": ..., "config": ...}; the paths of `wrong` lie within `config`."""
    wrong = {f"config.{path}": value for path, value in wrong.items()}
    return Sample({"type": name, "config": config}, wrong, place, says, silent or {})


def conditioner(name: str, place: str, says: str, wrong: dict[str, Any], **config: Any) -> Sample:
    sample = part(name, place, says, wrong, **config)
    return Sample({"id": "x", **sample.config}, sample.wrong, place, says)


def autoencoder(bottleneck: dict[str, Any], latents: int, encoded: int, channels: int = 1) -> dict[str, Any]:
    return {
        "encoder": {"type": "oobleck", "config": {**OOBLECK, "in_channels": channels, "latent_dim": encoded}},
        "decoder": {"type": "oobleck", "config": {**OOBLECK, "out_channels": channels, "latent_dim": latents}},
        "bottleneck": bottleneck,
        "latent_dim": latents,
        "downsampling_ratio": 8,
        "io_channels": channels,
    }


def judge(name: str, place: str, says: str, wrong: dict[str, Any], **config: Any) -> Sample:
    """A sample of a discriminator."""
    sample = part(name, place, says, wrong, **config)
    return replace(sample, config={**sample.config, "weights": {"adversarial": 0.1, "feature_matching": 5.0}}, slow=True)


def head(name: str, place: str, says: str, wrong: dict[str, Any], **config: Any) -> Sample:
    sample = part(name, place, says, wrong, **config)
    return replace(sample, config={**sample.config, "dit_hidden_layer": 1})


VAE = autoencoder({"type": "vae"}, 4, 8)
CODEC = autoencoder({"type": "dac_rvq", "config": DAC_RVQ}, 4, 4)
CONDITIONING = {
    "cond_dim": 8,
    "configs": [
        {"id": "prompt", "type": "bytes", "config": {"max_length": 8}},
        {"id": "seconds", "type": "number", "config": {"max_val": 10}},
    ],
}
IDS = {"cross_attention_cond_ids": ["prompt", "seconds"], "global_cond_ids": ["seconds"]}
DIT = {**TRANSFORMER, "io_channels": 8, "cond_token_dim": 8, "global_cond_dim": 8}


def model(name: str, place: str, says: str, wrong: dict[str, Any], **body: Any) -> Sample:
    config = {"model_type": name, "sample_rate": SAMPLE_RATE, "sample_size": 64, "audio_channels": 1, "model": body}
    return Sample(config, {f"model.{path}": value for path, value in wrong.items()}, f"model.{place}", says)


def language_model(pattern: str, place: str, says: str, wrong: dict[str, Any]) -> Sample:
    section = {
        "type": "continuous_transformer",
        "codebook_pattern": pattern,
        "config": {"embed_dim": 32, "depth": 1, "dim_heads": 16, "cross_attn_cond_dim": 8, "project_cross_attn_cond": True},
        **IDS,
    }
    return model(
        "lm",
        place,
        says,
        wrong,
        pretransform={"type": "autoencoder", "config": CODEC},
        conditioning=CONDITIONING,
        lm=section,
    )


SAMPLES: dict[str, dict[str, Sample]] = {
    "encoder": {
        "oobleck": part("oobleck", "config.strides", "give one width per stride", {"strides": [4]}, **OOBLECK, in_channels=2, latent_dim=6),
        "dac": part(
            "dac", "config.strides[1]", "above 0, got 0", {"strides": [2, 0]}, d_model=4, strides=[2, 3], latent_dim=6, in_channels=2
        ),
        "seanet": part("seanet", "config.compress", "set compress to 4 or less", {"compress": 8}, **SEANET, channels=2),
        "taae": part(
            "taae", "config.transformer_depths", "give 2 entries", {"transformer_depths": [1]}, **TAAE, in_channels=2, latent_dim=6
        ),
        "local_attn": part(
            "local_attn",
            "config.embed_dims[1]",
            "make it a multiple of 5, or change heads[1]",
            {"heads": [2, 5]},
            **LOCAL,
            in_channels=2,
            out_channels=6,
        ),
    },
    "decoder": {
        "oobleck": part(
            "oobleck", "config.strides", "give one width per stride", {"strides": [4]}, **OOBLECK, out_channels=2, latent_dim=6
        ),
        "dac": part(
            "dac", "config.channels", "set channels to 4 or more", {"channels": 2}, channels=16, rates=[4, 2], latent_dim=6, out_channels=2
        ),
        "seanet": part("seanet", "config.compress", "set compress to 4 or less", {"compress": 8}, **SEANET, channels=2),
        "taae": part(
            "taae", "config.transformer_depths", "give 2 entries", {"transformer_depths": [1]}, **TAAE, out_channels=2, latent_dim=6
        ),
        "local_attn": part(
            "local_attn",
            "config.embed_dims[1]",
            "make it a multiple of 5, or change heads[1]",
            {"heads": [2, 5]},
            **LOCAL,
            in_channels=6,
            out_channels=2,
        ),
    },
    "bottleneck": {
        "vae": Sample({"type": "vae", "config": {"mode": "mean"}}, {"config.mode": "median"}, "config.mode", "mean"),
        "tanh": part("tanh", "config.scale", "a number above 0", {"scale": 0}, scale=2.0),
        "l2_norm": Sample({"type": "l2_norm", "requires_grad": True}, {"config": {"scale": 1}}, "config.scale", "no keys"),
        "softnorm": part("softnorm", "config.dim", "above 0, got 0", {"dim": 0}, dim=4, noise_augment_dim=2),
        "wasserstein": part(
            "wasserstein", "config.noise_augment_dim", "at least 0, got -1", {"noise_augment_dim": -1}, noise_augment_dim=3, use_tanh=True
        ),
        "rvq": part("rvq", "config.num_quantizers", "above 0, got 0", {"num_quantizers": 0}, **RVQ),
        "rvq_vae": part("rvq_vae", "config.codebook_size", "above 0, got 0", {"codebook_size": 0}, **RVQ),
        "dac_rvq": part("dac_rvq", "config.codebook_dim", "give 2, or one number", {"codebook_dim": [2]}, **DAC_RVQ, noise_augment_dim=2),
        "dac_rvq_vae": part(
            "dac_rvq_vae", "config.codebook_dim", "give 2, or one number", {"codebook_dim": [2]}, **DAC_RVQ, quantize_on_decode=True
        ),
        "fsq": part("fsq", "config.levels[1]", "at least 2, got 1", {"levels": [5, 1, 3, 3]}, levels=[5, 4, 3, 3]),
        "dithered_fsq": part(
            "dithered_fsq", "config.levels", "give 4 numbers, or one for all", {"levels": [5, 4]}, dim=4, levels=[5, 4, 3, 3]
        ),
    },
    "pretransform": {
        "patched": part("patched", "config.oversampling", "divide", {"oversampling": 3}, channels=2, patch_size=8),
        "wavelet": part("wavelet", "config.levels", "above 0, got 0", {"levels": 0}, channels=2, levels=3, wavelet="bior2.2"),
        "pqmf": part("pqmf", "config.num_bands", "4 or 8", {"num_bands": 6}, channels=2, num_bands=8),
        "log_spectrogram": part("log_spectrogram", "config.hop_length", "such as 8", {"hop_length": 7}, channels=2, n_fft=32, hop_length=8),
        "autoencoder": part(
            "autoencoder", "config.encoder.config.latent_dim", "set encoder.config.latent_dim to 8", {"encoder.config.latent_dim": 5}, **VAE
        ),
        "autoencoder: trained": Sample(
            {"type": "autoencoder", "enable_grad": True, "config": VAE},
            {"config.latent_dim": 5},
            "config.decoder.config.latent_dim",
            "set decoder.config.latent_dim to 5",
        ),
        "autoencoder: tokens": part(
            "autoencoder", "config.decoder.config.strides", "set downsampling_ratio to 16", {"decoder.config.strides": [4, 4]}, **CODEC
        ),
        "dac_pretrained": replace(part("dac_pretrained", "config.path", "no such file", {"path": "nowhere.pth"}, path="<dac>"), cut=2),
        "audiocraft_pretrained": part("audiocraft_pretrained", "config.path", "no such file", {"path": "nowhere"}, path="<encodec>"),
    },
    "conditioner": {
        "int": conditioner("int", "config.max_val", "min_val", {"max_val": 2}, min_val=3, max_val=9),
        "number": conditioner("number", "config.max_val", "min_val", {"min_val": 2}, max_val=2),
        "list": conditioner("list", "config.options", "but it is empty", {"options": []}, options=["jazz", "pop"]),
        "bytes": conditioner("bytes", "config.max_length", "above 0, got 0", {"max_length": 0}, max_length=6),
        "t5": conditioner("t5", "config.max_length", "above 0, got 0", {"max_length": 0}, t5_model_name="<t5>", max_length=5),
        "clap_text": conditioner(
            "clap_text",
            "config.feature_layer_ix",
            "choose from",
            {"feature_layer_ix": 9, "use_text_features": True},
            clap_ckpt_path="<clap>",
            project_out=True,
        ),
        "clap_audio": conditioner(
            "clap_audio", "config.audio_model_type", "HTSAT", {"audio_model_type": "HTSAT"}, clap_ckpt_path="<clap>", project_out=True
        ),
        "lut": conditioner("lut", "config.max_length", "above 0, got 0", {"max_length": 0}, tokenizer_name="<t5>", max_length=5),
        "phoneme": conditioner("phoneme", "config.max_length", "above 0, got 0", {"max_length": 0}, max_length=5),
        "pretransform": conditioner(
            "pretransform",
            "config.pretransform_config.config.decoder.config.latent_dim",
            "set decoder.config.latent_dim to 5",
            {"pretransform_config.config.latent_dim": 5},
            sample_rate=SAMPLE_RATE,
            save_pretransform=True,
            pretransform_config={"type": "autoencoder", "config": VAE},
        ),
        "source_mix": conditioner(
            "source_mix",
            "config.source_length",
            "set source_length to the latent frames",
            {"allow_null_source": True},
            sample_rate=SAMPLE_RATE,
            source_keys=["drums", "bass"],
            pretransform_config=PATCHED,
        ),
    },
    "denoiser": {
        "dit": part(
            "dit",
            "config.embed_dim",
            "nearest: 30 or 33",
            {"num_heads": 3},
            **TRANSFORMER,
            io_channels=4,
            patch_size=2,
            cond_token_dim=8,
            global_cond_dim=6,
            input_concat_dim=3,
            prepend_cond_dim=5,
        ),
        "adp_1d": part(
            "adp_1d",
            "config.factors",
            "give 2, one for each level",
            {"factors": [2]},
            **ADP,
            context_features=6,
            context_channels=[3],
            context_embedding_features=8,
        ),
        "adp_cfg_1d": part(
            "adp_cfg_1d",
            "config.resnet_groups",
            "choose a divisor",
            {"resnet_groups": 5},
            {"model.fixed_embedding": "stands for a prompt that guidance leaves out"},
            **ADP,
            context_embedding_features=8,
            context_embedding_max_length=4,
            use_xattn_time=True,
        ),
    },
    "unconditional denoiser": {
        "dit": part("dit", "config.embed_dim", "nearest: 30 or 33", {"num_heads": 3}, **TRANSFORMER, in_channels=2, patch_size=4),
        "DAU1d": part("DAU1d", "config.strides", "set depth to 2", {"strides": [2]}, **DAU),
        "adp_uncond_1d": part("adp_uncond_1d", "config.attentions", "give 3", {"attentions": [1]}, **ADP),
    },
    "diffusion decoder": {
        "dit": part(
            "dit", "config.embed_dim", "nearest: 30 or 33", {"num_heads": 3}, **TRANSFORMER, io_channels=2, patch_size=2, input_concat_dim=4
        ),
        "DAU1d": part("DAU1d", "config.strides", "set depth to 2", {"strides": [2]}, **DAU, cond_dim=4, cond_noise_aug=True),
        "adp_1d": part("adp_1d", "config.factors", "give 2, one for each level", {"factors": [2]}, **ADP, context_channels=[4]),
    },
    "discriminator": {
        "encodec": Sample(
            {
                "type": "encodec",
                "config": {"filters": 4, "n_ffts": [64, 32], "hop_lengths": [16, 8], "win_lengths": [64, 32]},
                "weights": {"adversarial": 0.1, "feature_matching": 5.0},
            },
            {"config.hop_lengths": [16]},
            "config.hop_lengths",
            "give one per scale",
        ),
        "dac": judge(
            "dac",
            "config",
            "give one of them entries",
            {"periods": [], "rates": [], "fft_sizes": []},
            periods=[2, 3],
            rates=[2],
            fft_sizes=[128],
        ),
        "oobleck": judge("oobleck", "config.in_channels", "above 0, got 0", {"in_channels": 0}, in_channels=2),
        "big_vgan": judge(
            "big_vgan",
            "config.cqtd_n_octaves",
            "give one per network",
            {"cqtd_n_octaves": [2, 2]},
            periods=[2, 3],
            cqtd_filters=4,
            cqtd_hop_lengths=[64],
            cqtd_n_octaves=[3],
            cqtd_bins_per_octaves=[4],
            fmin=200.0,
        ),
    },
    "discriminator head": {
        "conv": head("conv", "config.soft_clip_scale", "above 0, got -1", {"soft_clip_scale": -1}, soft_clip_scale=3.0),
        "convnext": head(
            "convnext",
            "config.num_blocks",
            "give one per stage",
            {"num_blocks": [1]},
            channels=4,
            c_mults=[1, 2],
            strides=[2, 2],
            num_blocks=[1, 1],
        ),
    },
    "model": {
        "autoencoder": model("autoencoder", "encoder.config.latent_dim", "to 8", {"encoder.config.latent_dim": 4}, **VAE),
        "diffusion_cond": model(
            "diffusion_cond",
            "diffusion.config.cond_token_dim",
            "8",
            {"diffusion.config.cond_token_dim": 6},
            io_channels=8,
            pretransform=PATCHED,
            conditioning=CONDITIONING,
            diffusion={"type": "dit", "config": DIT, **IDS},
        ),
        "diffusion_cond_inpaint": model(
            "diffusion_cond_inpaint",
            "diffusion.config.input_concat_dim",
            "9",
            {"diffusion.config.input_concat_dim": 8},
            io_channels=8,
            pretransform=PATCHED,
            conditioning=CONDITIONING,
            diffusion={
                "type": "dit",
                "config": {**DIT, "input_concat_dim": 9},
                **IDS,
                "input_concat_ids": ["inpaint_mask", "inpaint_masked_input"],
            },
        ),
        "diffusion_uncond": model(
            "diffusion_uncond",
            "config.channels",
            "set depth to 1",
            {"config.channels": [32]},
            type="DAU1d",
            config={**DAU, "io_channels": 1},
        ),
        "diffusion_autoencoder": model(
            "diffusion_autoencoder",
            "diffusion.config.cond_dim",
            "set diffusion.config.cond_dim to 4",
            {"diffusion.config.cond_dim": 8},
            encoder={"type": "oobleck", "config": {**OOBLECK, "in_channels": 1, "latent_dim": 4}},
            bottleneck={"type": "tanh"},
            diffusion={"type": "DAU1d", "config": {**DAU, "io_channels": 1, "cond_dim": 4}},
            latent_dim=4,
            downsampling_ratio=8,
            io_channels=1,
        ),
        "lm": language_model(
            "delay", "lm.config.cross_attn_cond_dim", "set cross_attn_cond_dim to 8", {"lm.config.cross_attn_cond_dim": 6}
        ),
        "lm: parallel": language_model("parallel", "lm.config.embed_dim", "change embed_dim or dim_heads", {"lm.config.dim_heads": 15}),
        "lm: unroll": language_model("unroll", "pretransform", "such as an autoencoder with", {"pretransform.config": VAE}),
        "lm: musiclm": language_model(
            "musiclm", "lm.codebook_pattern_options.delays", "remove it", {"lm.codebook_pattern_options": {"delays": [0, 1]}}
        ),
        "lm: coarse_first": language_model(
            "coarse_first", "lm.cross_attention_cond_ids[0]", 'did you mean "prompt"', {"lm.cross_attention_cond_ids": ["promt"]}
        ),
    },
}


# ---- files ----


def make_file(name: str, folder: Path) -> Path:
    """The file or folder that "<name>" stands for, made in `folder`."""
    sys.path[:0] = [str(Path(__file__).parent / part) for part in ("conditioners", "pretransforms")]
    from tiny_codecs import encodec_folder
    from tiny_text_models import clap_folder, t5_folder

    return {"dac": dac_file, "encodec": encodec_folder, "t5": t5_folder, "clap": clap_folder}[name](folder)


def dac_file(folder: Path) -> Path:
    """A small codec in the layout of the published weights."""
    with safe_open(Path(__file__).parents[1] / "reference" / "dac_codec.safetensors", "pt") as file:
        state = {key.removeprefix("weights."): file.get_tensor(key) for key in file.keys() if key.startswith("weights.")}  # noqa: SIM118
        metadata = {"kwargs": json.loads(file.metadata()["kwargs"])}
    torch.save({"state_dict": state, "metadata": metadata}, folder / "weights.pth")
    return folder / "weights.pth"
