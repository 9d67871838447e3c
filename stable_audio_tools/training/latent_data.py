"""Whether a model can train on its data: audio or stored latents, of the model's own shape, and made by its own encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from stable_audio_tools.audio.io import shown
from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.latent_folder import LatentFacts
from stable_audio_tools.data.latent_shards import PROBE, ShardFolder
from stable_audio_tools.data.pre_encoded import PreEncodedDataset
from stable_audio_tools.inference.latents import LatentEncoder
from stable_audio_tools.models.safetensors_file import read_safetensors
from stable_audio_tools.training.config import AnyRun

KEY = ("training", "pre_encoded")


def check_form(run: AnyRun, data: Any) -> None:
    """Raises ConfigError where a run expects audio and the dataset config `data` is of latents, or the other way round."""
    latents = data.dataset_type == "pre_encoded" or getattr(data, "pre_encoded", False)
    expected = getattr(run.training, "pre_encoded", None)
    kind = f"the {data.dataset_type} data"
    if latents and expected is None:
        message = f"{kind} are latents, and {run.model_type} models train on audio"
        raise ConfigError([Problem(("model_type",), message, "name a dataset of audio", run.model_type)], "model config")
    if latents and not expected and getattr(run.model, "pretransform", None) is not None:
        raise ConfigError(
            [Problem(KEY, f"{kind} are latents, and the model would encode them once more", "set it to true", False)], "model config"
        )
    if expected and not latents:
        raise ConfigError([Problem(KEY, f"{kind} are audio", "set it to false, or encode them: pre-encode", True)], "model config")


def check_shape(run: AnyRun, dataset: Any) -> None:
    """Raises ConfigError where stored latents are not of the shape that the model's own have."""
    if isinstance(dataset, PreEncodedDataset):
        places = [("datasets", index, "path") for index in range(len(dataset.folders))]
        problems = [
            Problem(place, what, "encode with the model's own encoder: pre-encode", folder.root)
            for place, folder in zip(places, dataset.folders, strict=True)
            for what in _misfits(run, folder.facts)
        ]
        if problems:
            raise ConfigError(problems, "dataset config")


def _misfits(run: AnyRun, facts: LatentFacts) -> Iterator[str]:
    tokens = run.model_type == "lm"
    if facts.tokens != tokens:
        yield f"holds {'tokens' if facts.tokens else 'latents'}, and the model trains on {'tokens' if tokens else 'latents'}"
        return
    body: Any = run.model
    channels = body.pretransform.num_quantizers if tokens else body.io_channels
    if facts.channels != channels:
        what = "codebooks" if tokens else "channels"
        yield f"holds {'tokens' if tokens else 'latents'} of {facts.channels} {what}, and the model has {channels}"
    if body.pretransform is not None and facts.samples_per_frame not in (None, run.samples_per_frame):
        yield f"its frames are {facts.samples_per_frame} samples of audio each, and the model's {run.samples_per_frame}"


def check_encoder(model: nn.Module, dataset: Any) -> None:
    """Raises ConfigError where stored latents are another encoder's than the model's, by what both make of a fixed signal.

    A model without a pretransform has no encoder, and folders of upstream's layout do not know theirs; they cannot be held against it.
    """
    encoder = LatentEncoder.of(model)
    if not isinstance(dataset, PreEncodedDataset) or encoder is None:
        return
    problems = []
    for index, folder in enumerate(dataset.folders):
        if not isinstance(folder, ShardFolder):
            continue
        tensors, metadata = read_safetensors(Path(folder.root) / PROBE)
        distance = encoder.differs_from(tensors["probe"], metadata["stored"])  # type: ignore[arg-type]  # one of `Stored`
        if distance is not None:
            message = (
                f"{shown(folder.root)} was encoded by {folder.facts.encoder}, and the model's pretransform makes other latents of the same "
                f"audio ({distance:.2g} off)"
            )
            fix = f"load that encoder: --pretransform-ckpt-path {folder.facts.encoder}\nor encode the audio again with this one: pre-encode"
            problems.append(Problem(("datasets", index, "path"), message, fix))
    if problems:
        raise ConfigError(problems, "dataset config")
