"""A small language model with random weights, for the tests of `test_lm_*.py`."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from stable_audio_tools.models.factory import create_model_from_config
from stable_audio_tools.models.lm import AudioLanguageModel

METADATA = [{"prompt": "a bell", "pitch": 3, "seconds": 2.0}, {"prompt": "rain", "pitch": 9, "seconds": 7.5}]


def lm_config(lm: dict[str, Any] | None = None, codebooks: int = 3, **config: Any) -> dict[str, Any]:
    """Tokens of a small oobleck; `lm` and `config` are put over those of the lm section."""
    oobleck = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "latent_dim": 8}
    return deepcopy(
        {
            "model_type": "lm",
            "sample_rate": 8000,
            "sample_size": 256,
            "audio_channels": 1,
            "model": {
                "pretransform": {
                    "type": "autoencoder",
                    "config": {
                        "encoder": {"type": "oobleck", "config": {**oobleck, "in_channels": 1}},
                        "decoder": {"type": "oobleck", "config": {**oobleck, "out_channels": 1}},
                        "bottleneck": {
                            "type": "dac_rvq",
                            "config": {"input_dim": 8, "n_codebooks": codebooks, "codebook_size": 16, "codebook_dim": 4},
                        },
                        "latent_dim": 8,
                        "downsampling_ratio": 8,
                        "io_channels": 1,
                    },
                },
                "conditioning": {
                    "cond_dim": 16,
                    "configs": [
                        {"id": "prompt", "type": "bytes", "config": {"max_length": 8}},
                        {"id": "pitch", "type": "int", "config": {"max_val": 15}},
                        {"id": "seconds", "type": "number", "config": {"max_val": 10}},
                    ],
                },
                "lm": {"type": "continuous_transformer", "config": {"embed_dim": 32, "depth": 2, "dim_heads": 16, **config}, **(lm or {})},
            },
        }
    )


ROUTES: dict[str, dict[str, Any]] = {
    "none": {},
    "cross": {"cross_attention_cond_ids": ["prompt", "pitch"]},
    "prepend": {"prepend_cond_ids": ["prompt", "seconds"]},
    "global": {"global_cond_ids": ["prompt", "seconds"]},
    "all": {"cross_attention_cond_ids": ["prompt"], "prepend_cond_ids": ["pitch"], "global_cond_ids": ["seconds"]},
}


def routed(route: str, lm: dict[str, Any] | None = None, codebooks: int = 3, **config: Any) -> dict[str, Any]:
    """A config whose conditions take the routes of that name."""
    ids = ROUTES[route]
    widths = {"cross_attention_cond_ids": "cross_attn_cond_dim", "prepend_cond_ids": "prepend_cond_dim"}
    dims = {key: 16 for ids_key, key in widths.items() if ids_key in ids}
    return lm_config({**ids, **(lm or {})}, codebooks, **dims, **config)


def built(config: dict[str, Any]) -> AudioLanguageModel:
    """The model of a config, with weights that make every branch count, in eval mode."""
    model = create_model_from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in [*model.lm.parameters(), *model.conditioner.parameters()]:
            scale = 0.3 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def tokens(frames: int, codebooks: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 16, (batch, codebooks, frames), generator=torch.Generator().manual_seed(frames))


def conditions(model: AudioLanguageModel) -> dict[str, Any]:
    return model.conditioner(METADATA, "cpu")
