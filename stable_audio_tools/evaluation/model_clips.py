"""What a model makes of a dataset's items: a sound for the metadata of each, or, from an autoencoder, its own sound again.

Clip i depends on the seed and on i alone, not on the batch that it is made in. The global generators do not move.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from stable_audio_tools.diffusion.seeds import derive_seed
from stable_audio_tools.inference.generation import (
    generate_diffusion_cond,
    generate_diffusion_cond_inpaint,
    generate_diffusion_uncond,
    inpaints,
)
from stable_audio_tools.inference.language import generate_lm
from stable_audio_tools.inference.reconstruction import reconstruct
from stable_audio_tools.models.autoencoders.autoencoder import AudioAutoencoder
from stable_audio_tools.models.config import BaseModelConfig
from stable_audio_tools.models.lm import AudioLanguageModel
from stable_audio_tools.models.unconditional_diffusion import UnconditionalDiffusion

from .clip_sets import Clip, Clips
from .comparison import Comparison
from .embedders.base import Embedder

Batch = tuple[Tensor, Sequence[Mapping[str, Any]]]
TOP_P = 0.95  # of a language model, as in its demos


@dataclass(frozen=True)
class Sampling:
    """How clips are made; part of every recipe.

    steps: of the sampler; None: the model has none. cfg_scale: guidance, 1 is none; None: the model has none.
    sampler: its name; None: the objective's own. seed: of the noise.
    """

    steps: int | None = None
    cfg_scale: float | None = None
    sampler: str | None = None
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """What takes effect, as JSON."""
        values = {"steps": self.steps, "cfg_scale": self.cfg_scale, "sampler": self.sampler, "noise_seed": self.seed}
        return {name: value for name, value in values.items() if value is not None}


class Pair(NamedTuple):
    """An item of the dataset and what the model made for it, both (C, T) float32 on the CPU, without padding."""

    real: Tensor
    made: Tensor
    metadata: Mapping[str, Any]


def reconstructs(config: BaseModelConfig) -> bool:
    """Whether a model gives back the sounds that it is given, instead of making its own."""
    return config.model_type in ("autoencoder", "diffusion_autoencoder")


def has_steps(config: BaseModelConfig) -> bool:
    """Whether the clips of a model are sampled in steps."""
    return config.model_type not in ("autoencoder", "lm")


def has_guidance(config: BaseModelConfig) -> bool:
    """Whether a model has conditions that guidance could leave out."""
    if config.model_type == "lm":
        routes = config.model.lm.routes
        return bool(routes.tokens | routes.vectors)
    return config.model_type.startswith("diffusion_cond")


class Progress(Protocol):
    """Is told that a batch of so many clips begins, and then how many of its steps are done."""

    def begin(self, batch: int) -> None: ...
    def __call__(self, step: int, steps: int) -> None: ...


class Unheard:
    """Where nobody asks how the model gets on."""

    def begin(self, batch: int) -> None:
        pass

    def __call__(self, step: int, steps: int) -> None:
        pass


UNHEARD = Unheard()


def made_pairs(
    model: nn.Module,
    batches: Iterable[Batch],
    count: int,
    sampling: Sampling,
    sample_size: int,
    progress: Progress = UNHEARD,
) -> Iterator[Pair]:
    """The first `count` items of `batches`, each with what the model makes for it, as long as the item is without padding.

    Args:
        batches: audio (B, C, T) with the metadata of each; without a `padding_mask` all of it counts.
        sample_size: samples of a sound that is made; an item may be shorter.

    Raises:
        ConfigError: metadata that do not suffice.
    """
    first = 0
    for audio, metadata in batches:
        batch = audio[: count - first], list(metadata)[: count - first]
        yield from paired_up(batch, made_clips(model, batch, first, sampling, sample_size, progress))
        first += len(audio)
        if first >= count:
            return


def made_clips(
    model: nn.Module, batch: Batch, first: int, sampling: Sampling, sample_size: int, progress: Progress = UNHEARD
) -> list[Tensor]:
    """What the model makes for a batch whose items are number `first` and on: (C, T) each, as long as the item without padding.

    Raises:
        ConfigError: metadata that do not suffice.
    """
    audio, metadata = batch
    seeds = [derive_seed(sampling.seed, first + index) for index in range(len(audio))]
    made = _made(model, audio, list(metadata), seeds, sampling, sample_size, progress).float().cpu()
    return [clip[:, : real_length(item, audio.shape[-1])] for clip, item in zip(made, metadata, strict=True)]


def paired_up(batch: Batch, made: Sequence[Tensor]) -> list[Pair]:
    """The items of a batch, each with what was made for it."""
    items = zip(batch[0].float().cpu(), made, batch[1], strict=True)
    return [Pair(real[:, : real_length(metadata, real.shape[-1])], clip, metadata) for real, clip, metadata in items]


def real_length(metadata: Mapping[str, Any], length: int) -> int:
    """Samples of an item that are no padding, at least 1."""
    mask = metadata.get("padding_mask")
    if mask is None:
        return length
    mask = torch.as_tensor(mask).bool().flatten()  # of latents it has an entry a frame
    return max(1, int(mask.sum()) * length // len(mask))


def _made(
    model: nn.Module,
    audio: Tensor,
    metadata: list[Mapping[str, Any]],
    seeds: list[int],
    sampling: Sampling,
    sample_size: int,
    progress: Progress,
) -> Tensor:
    """(B, C, T) of a batch."""
    progress.begin(len(seeds))
    if isinstance(model, AudioAutoencoder):
        return reconstruct(model, (model.sample_rate, audio), steps=sampling.steps, seed=seeds, callback=progress)
    if isinstance(model, AudioLanguageModel):
        scale = 1.0 if sampling.cfg_scale is None else sampling.cfg_scale
        guided: dict[str, Any] = {"conditioning": metadata, "cfg_scale": scale} if model.routes.tokens | model.routes.vectors else {}
        seconds = sample_size / model.sample_rate
        return generate_lm(model, batch_size=len(seeds), seconds=seconds, top_p=TOP_P, seed=seeds, callback=progress, **guided)
    options: dict[str, Any] = {"steps": sampling.steps, "sample_size": sample_size, "seed": seeds, "sampler_type": sampling.sampler}
    options["callback"] = lambda step: progress(step.index + 1, sampling.steps or 1)
    if isinstance(model, UnconditionalDiffusion):
        return generate_diffusion_uncond(model, batch_size=len(seeds), **options)
    generate = generate_diffusion_cond_inpaint if inpaints(model) else generate_diffusion_cond
    return generate(model, cfg_scale=sampling.cfg_scale, conditioning=metadata, **options)  # type: ignore[arg-type]


def compared(
    pairs: Sequence[Pair],
    sample_rate: int,
    *,
    paired: bool,
    embedders: Sequence[Embedder] = (),
    training: Clips | None = None,
    loudness: float | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Comparison:
    """What the model made beside the items that it was made for.

    Args:
        sample_rate: Hz of both.
        paired: what was made are reconstructions.
        training, loudness, recipe: see `Comparison`.
    """
    prompts = [pair.metadata["prompt"] for pair in pairs if isinstance(pair.metadata.get("prompt"), str)]
    names = [str(pair.metadata.get("path", index)) for index, pair in enumerate(pairs)]
    return Comparison(
        generated=[Clip(pair.made, sample_rate, f"made for {name}") for pair, name in zip(pairs, names, strict=True)],
        reference=[Clip(pair.real, sample_rate, name) for pair, name in zip(pairs, names, strict=True)],
        paired=paired,
        prompts=prompts if prompts and len(prompts) == len(pairs) and not paired else None,
        training=training,
        embedders=embedders,
        loudness=loudness,
        recipe=recipe or {},
    )
