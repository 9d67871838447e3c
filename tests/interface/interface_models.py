"""Small random models of every kind in a folder of runs, as training leaves them."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import configs

from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.models.checkpoints import save_model


def saved(path: Path, config: dict) -> str:
    """A file with random weights of this config; every number of it matters to what comes out."""
    torch.manual_seed(0)
    model = create_model_from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, model, config)
    return str(path)


def run_of(runs: Path, name: str, config: dict) -> str:
    return saved(runs / name / "exports" / "model.safetensors", config)


def conditioned(**diffusion) -> dict:
    """Text, times, tempo, bars and genre to audio, by the global route."""
    config = configs.text_to_audio()
    conditions = {
        "seconds_start": {"type": "number", "config": {"min_val": 0, "max_val": 60}},
        "seconds_total": {"type": "number", "config": {"min_val": 0, "max_val": 60}},
        "tempo": {"type": "number", "config": {"min_val": 60, "max_val": 180}},
        "bars": {"type": "int", "config": {"min_val": 1, "max_val": 8}},
        "genre": {"type": "list", "config": {"options": ["jazz", "rock"]}},
    }
    config["model"]["conditioning"]["configs"] += [{"id": name, **kind} for name, kind in conditions.items()]
    section = config["model"]["diffusion"]
    section["global_cond_ids"] += list(conditions)
    section["config"]["global_cond_dim"] = 16 * (1 + len(conditions))
    section.update(diffusion)
    return config


MODELS = {
    "text": configs.text_to_audio,
    "conditioned": conditioned,
    "inpainting": configs.inpainting,
    "told": lambda: configs.text_to_audio(conditions=[{"type": "prefix", "seconds": 0.05}]),
    "unconditional": configs.unconditional,
    "autoencoder": configs.autoencoder,
    "diffusion_autoencoder": configs.diffusion_autoencoder,
    "language": configs.language_model,
}


def make_runs(runs: Path) -> dict[str, str]:
    """A run of each kind; the path of each model by its name."""
    return {name: run_of(runs, name, config()) for name, config in MODELS.items()}
