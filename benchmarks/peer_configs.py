"""Random small configs of every family, for `peer_agreement.py`.

A generator takes a `random.Random` and gives a case: the config, the sizes of its inputs, and how it is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

Config = dict[str, Any]
OMIT: Any = object()  # the key is left out: its default is what is compared

TRANSFORMER = {
    "depth": [1, 2, 3],
    "rotary_pos_emb": [OMIT, OMIT, False],
    "zero_init_branch_outputs": [OMIT, False],
    "conformer": [OMIT, OMIT, True],
    "use_sinusoidal_emb": [OMIT, OMIT, OMIT, True],
    "num_memory_tokens": [OMIT, 0, 3],
    "remove_norms": [OMIT, OMIT, True],
    "layer_scale": [OMIT, True],
}
ATTENTION = {"qk_norm": [OMIT, "none", "l2", "ln", "dyt"], "differential": [OMIT, OMIT, True], "feat_scale": [OMIT, True]}
FEEDFORWARD = {"mult": [OMIT, 1, 2, 1.5, 2.7], "no_bias": [OMIT, True], "glu": [OMIT, False], "use_conv": [OMIT, OMIT, True]}
NORM = {"bias": [OMIT, True], "fix_scale": [OMIT, True], "force_fp32": [OMIT, True], "eps": [OMIT, 1e-2]}
ADP = {
    "channels": [16, 32],
    "patch_size": [OMIT, 1, 2],
    "resnet_groups": [2, 4],
    "kernel_multiplier_downsample": [OMIT, 4],
    "use_nearest_upsample": [OMIT, True],
    "use_skip_scale": [OMIT, False],
    "use_context_time": [OMIT, OMIT, OMIT, False],
    "attention_heads": [2, 3],
    "attention_features": [OMIT, 8],
    "attention_multiplier": [1, 2, 4],
}


def pick(rng: Random, options: dict[str, list[Any]]) -> Config:
    """One value for each key, where it is not left out."""
    drawn = {key: rng.choice(values) for key, values in options.items()}
    return {key: value for key, value in drawn.items() if value is not OMIT}


def transformer(rng: Random, *, causal: bool = False) -> Config:
    """Keys that denoisers and language models share; `causal` leaves out what shows a step the later ones."""
    made = pick(rng, TRANSFORMER)
    if causal:
        made.pop("conformer", None)
    if made.get("rotary_pos_emb") is False:
        made |= pick(rng, {"add_rope": [OMIT, True]})
    if "use_sinusoidal_emb" not in made:
        made |= rng.choice([{}, {}, {"use_abs_pos_emb": True, "abs_pos_emb_max_length": 64}])
    attention, norm, feedforward = (pick(rng, part) for part in (ATTENTION, NORM, FEEDFORWARD))
    if causal:
        attention.pop("feat_scale", None)
        feedforward.pop("use_conv", None)
    if feedforward.get("use_conv"):
        feedforward |= pick(rng, {"conv_kernel_size": [OMIT, 1, 5]})
    if made.get("remove_norms") and not made.get("conformer"):
        norm = {}
    return {**made, "attn_kwargs": attention, "norm_kwargs": norm, "ff_kwargs": feedforward}


# ---- autoencoders ----


def _strided(rng: Random, kind: str, side: str, outer: int, inner: int, strides: list[int]) -> Config:
    """An encoder or decoder of `kind` between `outer` channels of audio and `inner` latent channels."""
    encoder, count = side == "encoder", len(strides)
    mults = [rng.choice([1, 2] if kind == "taae" else [1, 2, 3]) for _ in strides]
    channels = {"in_channels" if encoder else "out_channels": outer, "latent_dim": inner}
    if kind == "oobleck":
        more = pick(rng, {"use_snake": [OMIT, True], "antialias_activation": [OMIT, OMIT, True]})
        more |= {} if encoder else pick(rng, {"use_nearest_upsample": [OMIT, OMIT, True], "final_tanh": [OMIT, False]})
        return {**channels, "channels": rng.choice([4, 6]), "c_mults": mults, "strides": strides, **more}
    if kind == "dac":
        own = {"d_model": 4, "strides": strides} if encoder else {"channels": 8 * 2**count, "rates": strides[::-1]}
        return {**channels, **own}
    if kind == "taae":
        more = pick(rng, {"conformer": [OMIT, True], "layer_scale": [OMIT, False], "use_dilated_conv": [OMIT, True]})
        more |= {"sliding_window": [1023, 1024], **pick(rng, {"checkpointing": [OMIT, True]})}  # the peer's CPU has no narrower one
        more |= {"use_snake": True} if encoder and rng.random() < 0.5 else {}  # releases of the peer disagree about the decoder's
        depths = [rng.choice([1, 2]) for _ in strides]
        return {**channels, "channels": 64, "c_mults": mults, "strides": strides, "transformer_depths": depths, **more}
    more = {"n_residual_layers": [OMIT, 2], "dilation_base": [OMIT, 3], "lstm": [OMIT, 0, 1], "causal": [OMIT, True]}
    more |= {"norm": [OMIT, "none", "time_group_norm"], "true_skip": [OMIT, True], "compress": [OMIT, 1], "kernel_size": [OMIT, 5]}
    more |= {"pad_mode": [OMIT, "constant"], "residual_kernel_size": [OMIT, 1], "last_kernel_size": [OMIT, 3]}
    more |= {"trim_right_ratio": [OMIT], "activation_params": [OMIT, {"alpha": 0.5}]}
    more |= {} if encoder else {"final_activation": [OMIT, "Tanh"]}
    drawn = pick(rng, more)
    drawn |= {"trim_right_ratio": 0.5} if drawn.get("causal") and not encoder and rng.random() < 0.5 else {}
    drawn |= {"norm": "weight_norm"} if drawn.get("causal") and drawn.get("norm") == "time_group_norm" else {}
    return {"channels": outer, "dimension": inner, "n_filters": 4, "ratios": strides, **drawn}


def _bottleneck(rng: Random, width: int) -> tuple[Config | None, int, int]:
    """A bottleneck for `width` latent channels; the channels that it takes, and that a decoder gets."""
    kind = rng.choice(
        [None, "tanh", "vae", "rvq", "rvq_vae", "dac_rvq", "dac_rvq_vae", "l2_norm", "wasserstein", "fsq", "dithered_fsq", "vae", "dac_rvq"]
    )
    vq = {"dim": width, "codebook_size": rng.choice([8, 13]), "num_quantizers": rng.choice([1, 3])}
    vq |= pick(
        rng, {"decay": [OMIT, 0.9], "use_cosine_sim": [OMIT, OMIT, True], "kmeans_init": [OMIT, False], "codebook_dim": [OMIT, OMIT, 3]}
    )
    dac = {"input_dim": width, "n_codebooks": rng.choice([1, 3]), "codebook_size": 11}
    dac |= pick(rng, {"codebook_dim": [2, 3], "quantizer_dropout": [OMIT, 0.5]})
    noise = rng.choice([0, 0, 2])
    books = rng.choice([2, 4])
    config: dict[str | None, Config] = {
        "tanh": pick(rng, {"scale": [OMIT, 2.0]}),
        "rvq": vq,
        "rvq_vae": vq,
        "dac_rvq": {**dac, **({"noise_augment_dim": noise} if noise else {}), **pick(rng, {"quantize_on_decode": [OMIT, False, True]})},
        "dac_rvq_vae": {**dac, **pick(rng, {"quantize_on_decode": [OMIT, True]})},
        "wasserstein": {
            "noise_augment_dim": noise,
            **pick(rng, {"use_tanh": [OMIT, True], "tanh_scale": [OMIT, 2.0], "bypass_mmd": [OMIT, True]}),
        },
        "fsq": {"dim": width, "levels": [rng.choice([3, 4, 5, 8]) for _ in range(width // books)], "num_codebooks": books},
        "dithered_fsq": {
            "dim": width,
            "levels": rng.choice([5, [3, 4, 5, 17][:width] * (width // 4)]),
            **pick(rng, {"num_codebooks": [OMIT, 2]}),
        },
    }
    if kind is None:
        return None, width, width
    made = {"type": kind, **({"config": config[kind]} if kind in config else {}), **pick(rng, {"requires_grad": [OMIT, OMIT, False]})}
    return made, width * (2 if "vae" in kind else 1), width + (noise if kind in ("dac_rvq", "wasserstein") else 0)


def _pretransform(rng: Random, channels: int) -> tuple[Config | None, int, int]:
    """A pretransform of audio or none, its encoded channels and its ratio."""
    patch, bands, levels = rng.choice([2, 3, 4]), rng.choice([2, 4]), rng.choice([1, 2])
    inner = {
        "encoder": {"type": "oobleck", "config": _strided(rng, "oobleck", "encoder", channels, 3, [2, 2])},
        "decoder": {"type": "oobleck", "config": _strided(rng, "oobleck", "decoder", channels, 3, [2, 2])},
        **{"bottleneck": {"type": "tanh"}, "latent_dim": 3, "downsampling_ratio": 4, "io_channels": channels},
    }
    return rng.choice(
        [
            (None, channels, 1),
            (None, channels, 1),
            ({"type": "autoencoder", "config": inner, **pick(rng, {"scale": [OMIT, 2.5], "iterate_batch": [OMIT, True]})}, 3, 4),
            ({"type": "patched", "config": {"channels": channels, "patch_size": patch}}, channels * patch, patch),
            ({"type": "pqmf", "config": {"channels": channels, "num_bands": bands, "attenuation": 70}}, channels * bands, bands),
            (
                {
                    "type": "wavelet",
                    "config": {"channels": channels, "levels": levels, "wavelet": rng.choice(["bior2.2", "bior4.4", "bior6.8"])},
                },
                channels * 2**levels,
                2**levels,
            ),
        ]
    )


def autoencoder(rng: Random) -> Config:
    outer, width = rng.choice([1, 2]), rng.choice([4, 8])
    kinds = ["oobleck", "dac", "seanet", "taae"]
    pretransform, inner, before = _pretransform(rng, outer)
    regular = rng.random() < 0.7
    strides = [rng.choice([2, 4] if regular else [1, 2, 3, 4, 5]) for _ in range(rng.choice([1, 2, 3]))]
    bottleneck, coded, behind = _bottleneck(rng, width)
    encoder, decoder = (rng.choice(kinds) for _ in range(2))
    ratio = math.prod(strides) * before
    body = {
        "encoder": {
            "type": encoder,
            "config": _strided(rng, encoder, "encoder", inner, coded, strides),
            **pick(rng, {"requires_grad": [OMIT, False]}),
        },
        "decoder": {
            "type": decoder,
            "config": _strided(rng, decoder, "decoder", inner, behind, strides[::-1] if decoder == "seanet" else strides),
            **pick(rng, {"soft_clip": [OMIT, True]}),
        },
        "latent_dim": width,
        "downsampling_ratio": ratio,
        "io_channels": outer,
        **({"bottleneck": bottleneck} if bottleneck else {}),
        **({"pretransform": pretransform} if pretransform else {}),
    }
    length = ratio * rng.choice([8, 11]) + (rng.choice([0, 0, 1, 3]) if pretransform is None else 0)
    even = all(stride % 2 == 0 for stride in strides)  # others lose samples, which the peer's chunks are not made for
    noisy = behind != width  # drawn chunk by chunk
    return _top("autoencoder", body, outer, ratio * 32) | {
        "channels": outer,
        "length": length,
        "chunked": even and not noisy,
        "drawn": noisy,
    }


def _top(model_type: str, model: Config, channels: int, sample_size: int) -> Config:
    config = {"model_type": model_type, "sample_rate": 16000, "sample_size": sample_size, "audio_channels": channels, "model": model}
    return {"config": config}


# ---- denoisers ----


def _dit(rng: Random, channels: int, *, alone: bool = False) -> tuple[Config, int]:
    """Keys of a DiT and the multiple that its number of frames is."""
    heads, head = rng.choice([1, 2, 3]), rng.choice([32, 40, 64, 72])
    patch = rng.choice([1, 1, 2, 3])
    made = {"in_channels" if alone else "io_channels": channels, "embed_dim": heads * head, "num_heads": heads}
    made |= {"patch_size": patch, **transformer(rng), **pick(rng, {"causal": [OMIT, OMIT, True]})}
    if rng.random() < 0.15 and not alone:
        made |= {"transformer_type": "continuous_transformer"}
    return made, patch


def _adp(rng: Random, channels: int) -> tuple[Config, int]:
    levels = rng.choice([1, 2])
    made = {"in_channels": channels, "multipliers": [rng.choice([1, 2]) for _ in range(levels + 1)], **pick(rng, ADP)}
    made |= {"factors": [rng.choice([1, 2, 3]) for _ in range(levels)], "num_blocks": [rng.choice([1, 2]) for _ in range(levels)]}
    widths = [made["channels"] * multiplier for multiplier in made["multipliers"]]
    made |= {"attentions": [rng.choice([0, 1, 2]) if width % 32 == 0 else 0 for width in (*widths[1:], widths[-1])]}
    return made, math.prod(made["factors"]) * made.get("patch_size", 1)


def _dau(rng: Random, channels: int) -> tuple[Config, int]:
    depth = rng.choice([2, 3])
    learned = rng.random() < 0.5
    strides = [rng.choice([2, 4] if learned else [2]) for _ in range(depth - 1)] + [2]
    made = {"io_channels": channels, "depth": depth, "channels": [32] * (depth + rng.choice([0, 1])), "strides": strides}
    made |= {"n_attn_layers": rng.choice([0, 1, 2]), "learned_resample": learned}
    made |= pick(rng, {"kernel_size": [OMIT, 3], "conv_bias": [OMIT, False], "use_snake": [OMIT, True]})
    return made, math.prod(strides) * 8


NETWORKS: dict[str, Callable[..., tuple[Config, int]]] = {
    "dit": _dit,
    "adp_uncond_1d": _adp,
    "adp_1d": _adp,
    "adp_cfg_1d": _adp,
    "DAU1d": _dau,
}


def diffusion_uncond(rng: Random) -> Config:
    kind, outer = rng.choice(["dit", "adp_uncond_1d", "DAU1d"]), rng.choice([1, 2])
    pretransform, channels, ratio = _pretransform(rng, outer)
    network, multiple = _dit(rng, channels, alone=True) if kind == "dit" else NETWORKS[kind](rng, channels)
    body = {"type": kind, "config": network, **({"pretransform": pretransform} if pretransform else {})}
    return _top("diffusion_uncond", body, outer, 24 * multiple * ratio) | {"io": channels, "frames": 12 * multiple}


def diffusion_cond(rng: Random) -> Config:
    kind, inpaint = rng.choice(["dit", "dit", "dit", "adp_1d", "adp_cfg_1d"]), rng.random() < 0.3
    channels, width = rng.choice([3, 4]), rng.choice([8, 12])
    network, multiple = NETWORKS[kind](rng, channels)
    dit, guidable = kind == "dit", False
    conditioners = [
        {"id": "a", "type": "number", "config": pick(rng, {"min_val": [OMIT, -1], "max_val": [OMIT, 3]})},
        {"id": "b", "type": "int", "config": pick(rng, {"max_val": [OMIT, 12]})},
        {"id": "c", "type": "list", "config": {"options": ["jazz", "pop"]}},
    ]
    if dit and rng.random() < 0.5:
        heads, head = network["num_heads"], network["embed_dim"] // network["num_heads"]
        grouped = [{"project_cond_tokens": False, "width": head}, {"project_cond_tokens": False, "width": head * heads}, {"width": width}]
        chosen = rng.choice(grouped)
        width = chosen.pop("width") if chosen["width"] % 2 == 0 else width
        network |= chosen
    section: Config = {"type": kind, **pick(rng, {"diffusion_objective": [OMIT, "v", "rectified_flow", "rf_denoiser"]})}
    cross = rng.sample("abc", rng.choice([1, 2, 3])) if kind == "adp_cfg_1d" or (dit and rng.random() < 0.7) else []
    overall = rng.sample("abc", rng.choice([1, 2])) if rng.random() < 0.6 else []
    before = rng.sample("abc", rng.choice([1, 2])) if dit and rng.random() < 0.3 else []
    beside = ["inpaint_mask", "inpaint_masked_input"] if inpaint else []
    case: Config = {}
    if rng.random() < 0.3:
        beside.append("ref")
        patch = width // rng.choice([1, 2])
        source = {"type": "patched", "config": {"channels": width // patch, "patch_size": patch}}
        conditioners.append({"id": "ref", "type": "pretransform", "config": {"sample_rate": 16000, "pretransform_config": source}})
        case["audio"] = [width // patch, patch * 5 * rng.choice([1, 3])]
    for key, names in (("cross_attention", cross), ("global", overall), ("prepend", before)):
        section |= {f"{key}_cond_ids": names} if names else {}
    section |= {"input_concat_ids": beside} if beside else {}
    concat = (channels + 1 if inpaint else 0) + (width if "ref" in beside else 0)
    if dit:
        network |= {"cond_token_dim": width} if cross else {}
        network |= {"global_cond_dim": width * len(overall)} if overall else {}
        network |= {"input_concat_dim": concat} if concat else {}
        network |= {"prepend_cond_dim": width} if before else {}
        network |= pick(rng, {"global_cond_type": [OMIT, "prepend", "adaLN"]})
        network |= {"final_cross_attn_ix": 0} if cross and rng.random() < 0.2 else {}
        if not cross:
            network.pop("project_cond_tokens", None)
        guidable = bool(cross or before)
    else:
        network |= {"context_features": width * len(overall)} if overall else {}
        network |= {"context_channels": [concat]} if concat else {}
        network |= {"resnet_groups": 1} if concat else {}
        if kind == "adp_cfg_1d":
            network |= {"context_embedding_features": width, "context_embedding_max_length": len(cross) + rng.choice([0, 0, 2])}
            network |= pick(rng, {"use_xattn_time": [OMIT, True]})
            guidable = True
    section["config"] = network
    body = {"io_channels": channels, "diffusion": section, "conditioning": {"cond_dim": width, "configs": conditioners}}
    frames = multiple * rng.choice([6, 7])
    made = _top(f"diffusion_cond{'_inpaint' * inpaint}", body, 2, frames) | case
    return made | {"io": channels, "frames": frames, "guidable": guidable}


def diffusion_autoencoder(rng: Random) -> Config:
    kind, outer, width = rng.choice(["dit", "adp_1d", "DAU1d"]), rng.choice([1, 2]), 4
    pretransform, channels, before = _pretransform(rng, outer)
    strides = [rng.choice([2, 4]) for _ in range(rng.choice([1, 2]))]
    network, multiple = NETWORKS[kind](rng, channels)
    decoder = rng.random() < 0.3
    beside = 6 if decoder else width
    network |= {
        "dit": {"input_concat_dim": beside},
        "adp_1d": {"context_channels": [beside], "resnet_groups": 1},
        "DAU1d": {"cond_dim": beside},
    }[kind]
    network |= {"diffusion_objective": "v"} if kind == "dit" else {}
    encoder = rng.choice(["oobleck", "dac", "seanet"])
    ratio = math.prod(strides)
    body: Config = {
        "encoder": {"type": encoder, "config": _strided(rng, encoder, "encoder", channels, width, strides)},
        "diffusion": {"type": kind, "config": network},
        "latent_dim": width,
        "downsampling_ratio": ratio,
        "io_channels": channels,
        **rng.choice([{}, {"bottleneck": {"type": "tanh"}}, {"bottleneck": {"type": "l2_norm"}}]),
        **({"pretransform": pretransform} if pretransform else {}),
    }
    if decoder:
        upsampler = _strided(rng, "oobleck", "decoder", beside, width, [2])
        body |= {"decoder": {"type": "oobleck", "config": upsampler}}
    frames = math.lcm(ratio, multiple) * 6
    made = _top("diffusion_autoencoder", body, outer, frames * before)
    return made | {"io": channels, "channels": outer, "frames": frames, "beside": beside, "length": frames * before}


# ---- tokens ----


def lm(rng: Random) -> Config:
    codebooks, values, width = rng.choice([1, 2, 4]), rng.choice([7, 16]), 8
    codec = {
        "encoder": {"type": "oobleck", "config": {"in_channels": 1, "channels": 4, "latent_dim": 4, "c_mults": [1], "strides": [4]}},
        "decoder": {"type": "oobleck", "config": {"out_channels": 1, "channels": 4, "latent_dim": 4, "c_mults": [1], "strides": [4]}},
        "bottleneck": {"type": "dac_rvq", "config": {"input_dim": 4, "n_codebooks": codebooks, "codebook_size": values, "codebook_dim": 2}},
        "latent_dim": 4,
        "downsampling_ratio": 4,
        "io_channels": 1,
    }
    heads, head = rng.choice([1, 2, 3]), rng.choice([32, 64])
    network = {
        "embed_dim": heads * head,
        **transformer(rng, causal=True),
        **({"dim_heads": head} if head != 64 or rng.random() < 0.5 else {}),
    }
    cross = rng.sample("abc", rng.choice([1, 3])) if rng.random() < 0.6 else []
    before = rng.sample("abc", 1) if rng.random() < 0.4 else []
    network |= {"cross_attn_cond_dim": width, "project_cross_attn_cond": True} if cross else {}
    network |= {"prepend_cond_dim": width} if before else {}
    section: Config = {
        "type": "continuous_transformer",
        "config": network,
        **pick(rng, {"codebook_pattern": [OMIT, "delay", "parallel", "unroll", "musiclm"]}),
    }
    section |= {"cross_attention_cond_ids": cross} if cross else {}
    section |= {"prepend_cond_ids": before} if before else {}
    if section.get("codebook_pattern") == "musiclm" and codebooks == 1:
        section.pop("codebook_pattern")
    conditioners = [
        {"id": "a", "type": "number", "config": {}},
        {"id": "b", "type": "int", "config": {}},
        {"id": "c", "type": "list", "config": {"options": ["jazz"]}},
    ]
    body: Config = {"pretransform": {"type": "autoencoder", "config": codec}, "lm": section}
    if cross or before or rng.random() < 0.5:
        body["conditioning"] = {"cond_dim": width, "configs": conditioners}
    made = _top("lm", body, 1, 256)
    return made | {"codebooks": codebooks, "codebook_size": values, "frames": 9, "conditioned": "conditioning" in body}


# ---- discriminators ----


def discriminator(rng: Random) -> Config:
    kind, channels = rng.choice(["encodec", "encodec", "dac", "dac", "oobleck"]), rng.choice([1, 2])
    scales = rng.sample([256, 128, 64, 200], rng.choice([1, 2]))
    encodec = {
        "filters": 4,
        "n_ffts": scales,
        "hop_lengths": [n // 4 for n in scales],
        "win_lengths": [n - rng.choice([0, 20]) for n in scales],
    }
    encodec |= pick(
        rng, {"normalize_losses": [OMIT, True], "filters_scale": [OMIT, 2], "max_filters": [OMIT, 6], "normalized": [OMIT, False]}
    )
    encodec |= pick(rng, {"dilations": [OMIT, [1, 3]], "kernel_size": [OMIT, [3, 5]], "stride": [OMIT, [1, 2]]})
    dac = {"periods": rng.sample([2, 3, 5], 1), "fft_sizes": rng.sample([128, 256], rng.choice([0, 1]))}
    dac |= pick(rng, {"use_hinge": [OMIT, True], "bands": [OMIT, [[0.0, 0.4], [0.4, 1.0]]]})
    chosen = {"encodec": encodec, "dac": dac, "oobleck": {"in_channels": channels}}[kind]
    return {"config": {"type": kind, "config": chosen, "channels": channels}, "length": rng.choice([700, 1025])}


FAMILIES: dict[str, Callable[[Random], Config]] = {
    "autoencoder": autoencoder,
    "diffusion_uncond": diffusion_uncond,
    "diffusion_cond": diffusion_cond,
    "diffusion_autoencoder": diffusion_autoencoder,
    "lm": lm,
    "discriminator": discriminator,
}


def case(family: str, seed: int) -> Config:
    """The case of one seed; batch and precision are drawn with it."""
    rng = Random(f"{family} {seed}")
    made = FAMILIES[family](rng)
    double = rng.random() < 0.15 and not made.pop("drawn", False)  # noise is drawn in another precision then
    return {**made, "family": family, "seed": seed, "name": f"{family}-{seed}", "batch": rng.choice([1, 2]), "double": double}
