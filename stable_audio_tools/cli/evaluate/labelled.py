"""A text-to-audio model of the synthetic dataset, measured against its labels: notes, instruments and loudness of held-out prompts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stable_audio_tools.cli.evaluate.clips import save_clips
from stable_audio_tools.cli.evaluate.flags import BATCH
from stable_audio_tools.data.synthetic import SyntheticConfig
from stable_audio_tools.diffusion.seeds import derive_seed
from stable_audio_tools.evaluation.model_clips import Sampling
from stable_audio_tools.evaluation.scores import EvaluationReport
from stable_audio_tools.evaluation.synthetic import evaluate_synthetic
from stable_audio_tools.inference.generation import generate_diffusion_cond

log = logging.getLogger(__name__)


def evaluate_labelled(
    model: Any,
    dataset: SyntheticConfig,
    sampling: Sampling,
    *,
    sample_size: int,
    num_prompts: int,
    batch_size: int = BATCH,
    save_audio: Path | None = None,
    name: str = "model",
) -> EvaluationReport:
    """Generate clips for held-out prompts of the synthetic dataset and measure them.

    Args:
        model: a `ConditionedDiffusion`, used where it is.
        sample_size: samples of each clip.
        save_audio: folder for the generated clips.
        name: of the model, for the report.
    """

    def generate(conditioning: list[dict[str, Any]]) -> Tensor:
        audio = _generated(model, conditioning, sample_size, sampling, batch_size)
        if save_audio is not None:
            save_clips(save_audio, audio, [item["prompt"] for item in conditioning], model.sample_rate)
        return audio

    settings = {"model": name, **sampling.to_dict()}
    return evaluate_synthetic(generate, dataset, model.sample_rate, sample_size, num_prompts, settings=settings)


def _generated(model: Any, conditioning: list[dict[str, Any]], sample_size: int, sampling: Sampling, batch_size: int) -> Tensor:
    parts = []
    for start in range(0, len(conditioning), batch_size):
        batch = conditioning[start : start + batch_size]
        log.info("clips %d to %d of %d", start + 1, start + len(batch), len(conditioning))
        part = generate_diffusion_cond(
            model,
            steps=sampling.steps or 1,
            cfg_scale=1.0 if sampling.cfg_scale is None else sampling.cfg_scale,
            conditioning=batch,
            sample_size=sample_size,
            seed=[derive_seed(sampling.seed, start + i) for i in range(len(batch))],  # a clip does not depend on its batch
            sampler_type=sampling.sampler,
        )
        parts.append(part.cpu())
    return torch.cat(parts)
