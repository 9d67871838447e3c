"""Demos of a language model: samples under fixed conditions, and clips of the data continued, with the same draws every time.

C channels, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stable_audio_tools.models.lm import AudioLanguageModel
from stable_audio_tools.training.demos.base import Demo, DemoCallback
from stable_audio_tools.training.demos.config import LanguageModelDemoConfig
from stable_audio_tools.training.prepare import padding_mask, resize_mask
from stable_audio_tools.training.strategies.next_token import stored_tokens


class Subject(NamedTuple):
    """What the demos of one group are about.

    group: its title. metadata: what the model is told.
    """

    group: str
    metadata: Mapping[str, Any]


class Clip(NamedTuple):
    """A clip of the data.

    tokens: (K, T) of its real part. original: (C, samples), the same as audio.
    """

    subject: Subject
    tokens: Tensor
    original: Tensor


class AudioLanguageModelDemoCallback(DemoCallback):
    """Samples for `demo.demo_cond`, or for the metadata of the first clips of the data, and continuations of the first clips.

    Without data there are no continuations, and a model with conditions needs `demo_cond`.

    Args:
        config: the `demo` section.
        num_frames: frames of tokens of each demo, at least 2.
        kwargs: `sample_rate`, `folder`, `batches` of `DemoCallback`.
    """

    def __init__(self, config: LanguageModelDemoConfig, *, num_frames: int, **kwargs: Any):
        super().__init__(config.demo_every, **kwargs)
        self.config, self.num_frames = config, num_frames
        self._clips: list[Clip] | None = None

    def render(self, module: Any) -> list[Demo]:
        model: AudioLanguageModel = module.sampling_model
        asked = self._asked_for(model)
        if self._clips is None:
            count = max(self.config.num_continuations, 0 if asked else self.config.num_samples)
            self._clips = self._first_clips(model, count, pre_encoded=module.pre_encoded)
        subjects = asked or [clip.subject for clip in self._clips]
        if not subjects:
            raise ValueError("the demo config has no demo_cond, and there is no data to take conditions from")

        demos = [_demo(clip.subject, "original", clip.original) for clip in self._clips]
        for scale in self.config.demo_cfg_scales:
            demos += self._generate(model, subjects, scale)
            if continued := self._clips[: self.config.num_continuations]:
                demos += self._generate(model, [clip.subject for clip in continued], scale, self._beginnings(continued))
        return demos

    def _asked_for(self, model: AudioLanguageModel) -> list[Subject]:
        """What samples are about, where that takes no data."""
        count, metadata = self.config.num_samples, self.config.demo_cond or ()
        if not model.routes.tokens | model.routes.vectors:
            metadata = ({},)
        if len(metadata) == 1:
            metadata *= count
        return [_subject(str(number), item) for number, item in enumerate(metadata, 1)]

    def _first_clips(self, model: AudioLanguageModel, count: int, *, pre_encoded: bool) -> list[Clip]:
        if self.batches is None:
            return []
        pairs = ((signal, item) for signals, metadata in self.batches for signal, item in zip(signals, metadata, strict=True))
        return [_clip(model, number, *pair, pre_encoded=pre_encoded) for number, pair in enumerate(islice(pairs, count), 1)]

    def _beginnings(self, clips: Sequence[Clip]) -> Tensor:
        """The tokens (B, K, frames) that continuations are given: the same share of each, of the shortest clip's length."""
        frames = min(self.num_frames, *(clip.tokens.shape[-1] for clip in clips))
        return torch.stack([clip.tokens[:, : max(1, int(self.config.prefix_share * frames))] for clip in clips])

    def _generate(self, model: AudioLanguageModel, subjects: Sequence[Subject], scale: float, given: Tensor | None = None) -> list[Demo]:
        config, info = self.config, {}
        if given is not None:
            info["prefix_s"] = round(given.shape[-1] * model.pretransform.downsampling_ratio / self.sample_rate, 3)
        audio = model.generate_audio(
            self.num_frames,
            batch_size=len(subjects),
            init_data=given,
            conditioning=[subject.metadata for subject in subjects],
            cfg_scale=scale,
            temp=config.temperature,
            top_k=config.top_k or 0,
            top_p=config.nucleus,
            seed=config.seed,
        )
        kind = "generated" if given is None else "continuation"
        return [_demo(subject, kind, each, scale, config.seed, info) for subject, each in zip(subjects, audio, strict=True)]


def _subject(label: str, metadata: Mapping[str, Any]) -> Subject:
    prompt = metadata.get("prompt")
    return Subject(f"{label}. {prompt}" if prompt else label, metadata)


def _clip(model: AudioLanguageModel, number: int, signal: Tensor, metadata: Mapping[str, Any], *, pre_encoded: bool) -> Clip:
    """Of audio (C, samples), or of tokens (K, T) if `pre_encoded`."""
    device = next(model.parameters()).device
    tokens = (stored_tokens(signal[None], model) if pre_encoded else model.pretransform.tokenize(signal[None].to(device)))[0].to(device)
    real = padding_mask([metadata], signal[None])
    frames = max(1, int(resize_mask(real, tokens.shape[-1]).sum()))
    tokens = tokens[:, :frames]
    original = model.decode_tokens(tokens[None])[0] if pre_encoded else signal[:, : int(real.sum())]
    return Clip(_subject(f"clip {number}", metadata), tokens, original)


def _demo(
    subject: Subject, kind: str, audio: Tensor, scale: float | None = None, seed: int | None = None, info: Mapping[str, Any] | None = None
) -> Demo:
    about = {key: value for key, value in subject.metadata.items() if key != "prompt" and isinstance(value, str | int | float)}
    title = f"{subject.group}, {kind}" + ("" if scale is None else f", cfg {scale:g}")
    return Demo(title, audio, kind, subject.group, subject.metadata.get("prompt"), scale, seed, about | dict(info or {}))
