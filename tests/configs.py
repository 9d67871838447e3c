"""Tiny real configs: they build in milliseconds and train a step in tens of them. Each call gives a fresh dict."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

SAMPLE_RATE = 8000


def text_to_audio(**training: Any) -> dict[str, Any]:
    """Prompt to a 16-channel patched waveform by a two-layer DiT; 0.26 s of mono audio."""
    return deepcopy(
        {
            "model_type": "diffusion_cond",
            "sample_rate": SAMPLE_RATE,
            "sample_size": 2048,
            "audio_channels": 1,
            "model": {
                "io_channels": 16,
                "pretransform": {"type": "patched", "config": {"channels": 1, "patch_size": 16}},
                "conditioning": {
                    "cond_dim": 16,
                    "configs": [{"id": "prompt", "type": "bytes", "config": {"max_length": 24}}],
                },
                "diffusion": {
                    "type": "dit",
                    "diffusion_objective": "rectified_flow",
                    "cross_attention_cond_ids": ["prompt"],
                    "global_cond_ids": ["prompt"],
                    "config": {
                        "io_channels": 16,
                        "embed_dim": 32,
                        "depth": 2,
                        "num_heads": 2,
                        "cond_token_dim": 16,
                        "global_cond_dim": 16,
                        "global_cond_type": "adaLN",
                    },
                },
            },
            "training": {
                "learning_rate": 1e-3,
                "timestep_sampler": "logit_normal",
                "demo": {
                    "demo_every": 1000,
                    "demo_steps": 2,
                    "demo_cond": [{"prompt": "a bell playing A4, soft"}, {"prompt": "a noise burst, loud"}],
                },
                **training,
            },
        }
    )


def autoencoder(**training: Any) -> dict[str, Any]:
    """Oobleck with a VAE bottleneck, a small encodec discriminator and a stereo spectral loss; 0.26 s of stereo audio."""
    return deepcopy(
        {
            "model_type": "autoencoder",
            "sample_rate": SAMPLE_RATE,
            "sample_size": 2048,
            "audio_channels": 2,
            "model": {
                "encoder": {
                    "type": "oobleck",
                    "config": {"in_channels": 2, "channels": 8, "c_mults": [1, 2], "strides": [4, 4], "latent_dim": 8, "use_snake": True},
                },
                "decoder": {
                    "type": "oobleck",
                    "config": {
                        "out_channels": 2,
                        "channels": 8,
                        "c_mults": [1, 2],
                        "strides": [4, 4],
                        "latent_dim": 4,
                        "use_snake": True,
                        "final_tanh": False,
                    },
                },
                "bottleneck": {"type": "vae"},
                "latent_dim": 4,
                "downsampling_ratio": 16,
                "io_channels": 2,
            },
            "training": {
                "learning_rate": 1e-3,
                "loss_configs": {
                    "discriminator": {
                        "type": "encodec",
                        "config": {"filters": 4, "n_ffts": [256, 128], "hop_lengths": [64, 32], "win_lengths": [256, 128]},
                        "weights": {"adversarial": 0.1, "feature_matching": 5.0},
                    },
                    "spectral": {
                        "type": "mrstft",
                        "config": {"fft_sizes": [256, 64], "hop_sizes": [64, 16], "win_lengths": [256, 64], "perceptual_weighting": True},
                        "weights": {"mrstft": 1.0},
                    },
                    "time": {"type": "l1", "weights": {"l1": 0.1}},
                    "bottleneck": {"type": "kl", "weights": {"kl": 1e-4}},
                },
                "demo": {"demo_every": 1000, "max_demos": 2},
                **training,
            },
        }
    )


def language_model(bottleneck: dict[str, Any] | None = None, pattern: str = "delay", **training: Any) -> dict[str, Any]:
    """Prompt to three codebooks of a small oobleck by a two-layer transformer; 0.26 s of mono audio in 64 frames."""
    oobleck = {"channels": 4, "c_mults": [1, 2], "strides": [4, 8], "latent_dim": 8}
    dac_rvq = {"type": "dac_rvq", "config": {"input_dim": 8, "n_codebooks": 3, "codebook_size": 16, "codebook_dim": 4}}
    return deepcopy(
        {
            "model_type": "lm",
            "sample_rate": SAMPLE_RATE,
            "sample_size": 2048,
            "audio_channels": 1,
            "model": {
                "pretransform": {
                    "type": "autoencoder",
                    "config": {
                        "encoder": {"type": "oobleck", "config": {**oobleck, "in_channels": 1}},
                        "decoder": {"type": "oobleck", "config": {**oobleck, "out_channels": 1}},
                        "bottleneck": bottleneck or dac_rvq,
                        "latent_dim": 8,
                        "downsampling_ratio": 32,
                        "io_channels": 1,
                    },
                },
                "conditioning": {"cond_dim": 16, "configs": [{"id": "prompt", "type": "bytes", "config": {"max_length": 32}}]},
                "lm": {
                    "type": "continuous_transformer",
                    "codebook_pattern": pattern,
                    "cross_attention_cond_ids": ["prompt"],
                    "config": {
                        "embed_dim": 32,
                        "depth": 2,
                        "dim_heads": 16,
                        "cross_attn_cond_dim": 16,
                        "project_cross_attn_cond": True,
                        "causal_cross_attention": False,
                    },
                },
            },
            "training": {
                "learning_rate": 3e-3,
                "demo": {"demo_every": 1000, "demo_cond": [{"prompt": "a bell playing A4, soft"}], "num_continuations": 1},
                **training,
            },
        }
    )


def unconditional(**training: Any) -> dict[str, Any]:
    """A two-layer DiT on patches of a waveform; 0.26 s of mono audio."""
    return deepcopy(
        {
            "model_type": "diffusion_uncond",
            "sample_rate": SAMPLE_RATE,
            "sample_size": 2048,
            "audio_channels": 1,
            "model": {
                "type": "dit",
                "pretransform": {"type": "patched", "config": {"channels": 1, "patch_size": 16}},
                "config": {"in_channels": 16, "embed_dim": 32, "depth": 2, "num_heads": 2},
            },
            "training": {"learning_rate": 1e-3, "demo": {"demo_every": 1000, "demo_steps": 2, "num_demos": 2}, **training},
        }
    )


def inpainting(**training: Any) -> dict[str, Any]:
    """`text_to_audio` that also sees the audio to keep."""
    shares = {"max_mask_segments": 3, "mask_type_probabilities": [0.4, 0.3, 0.2, 0.1]}
    demo = {"demo_every": 1000, "demo_steps": 2, "num_demos": 2}
    config = text_to_audio(**{"inpainting": {"mask_kwargs": shares}, "demo": demo, **training})
    config["model_type"] = "diffusion_cond_inpaint"
    diffusion = config["model"]["diffusion"]
    diffusion["input_concat_ids"] = ["inpaint_mask", "inpaint_masked_input"]
    diffusion["config"]["input_concat_dim"] = 17
    return config


def diffusion_autoencoder(**training: Any) -> dict[str, Any]:
    """Oobleck with a VAE bottleneck, and a two-layer DiT on patches of four samples beside its latents; 0.26 s of mono audio."""
    encoder = {"in_channels": 4, "channels": 8, "c_mults": [1, 2], "strides": [2, 4], "latent_dim": 8, "use_snake": True}
    return deepcopy(
        {
            "model_type": "diffusion_autoencoder",
            "sample_rate": SAMPLE_RATE,
            "sample_size": 2048,
            "audio_channels": 1,
            "model": {
                "pretransform": {"type": "patched", "config": {"channels": 1, "patch_size": 4}},
                "encoder": {"type": "oobleck", "config": encoder},
                "bottleneck": {"type": "vae"},
                "diffusion": {
                    "type": "dit",
                    "config": {"io_channels": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "input_concat_dim": 4},
                },
                "latent_dim": 4,
                "downsampling_ratio": 8,
                "io_channels": 4,
            },
            "training": {"learning_rate": 1e-3, "demo": {"demo_every": 1000, "demo_steps": 2, "max_demos": 2}, **training},
        }
    )
