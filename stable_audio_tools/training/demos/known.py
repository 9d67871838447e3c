"""Demos of models that are told frames or references: what each clip was, what of it is given, what is in front, what is made."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from stable_audio_tools.diffusion.known import Known
from stable_audio_tools.inference.generation import isolated_generators
from stable_audio_tools.models.conditioners.routing import resize_signal
from stable_audio_tools.training.conditions import ConditionPlan
from stable_audio_tools.training.demos.base import Demo
from stable_audio_tools.training.demos.diffusion import Clips, DiffusionCondDemoCallback, group_of
from stable_audio_tools.training.prepare import latent_batch, to_latents


class DiffusionCondKnownDemoCallback(DiffusionCondDemoCallback):
    """Completes the first clips of the data: each is told by one of the frame conditions, in turn, and by all references.

    What is drawn is drawn once and for all. `demo.demo_cond`, where given, takes the place of the clips' own metadata.
    """

    clips_from_data: ClassVar[int] = 8

    def render(self, module: Any) -> list[Demo]:
        clips, model = self._first_clips(), module.sampling_model
        signal, metadata = torch.stack([signal for signal, _ in clips]), [each for _, each in clips]
        plan: ConditionPlan = module.plan
        with isolated_generators(module.device, self.config.seed):
            batch = latent_batch((signal.to(next(model.model.parameters())), metadata), model, pre_encoded=module.pre_encoded)
            encode = partial(to_latents, pretransform=model.pretransform, pre_encoded=module.pre_encoded)
            known = plan.draw_in_turn(batch, encode)
        audio = self._audio(module, signal)
        told = [*self._given(clips, audio, known), *self._references(module, clips, known)]
        shown = list(self._own_conditions) or metadata
        made = self._generated(module, shown, conditioning=shown, known=_cut(known, len(shown)))
        return self._originals(clips, audio) + told + made

    def _given(self, clips: Clips, audio: Tensor, known: Known) -> list[Demo]:
        """The parts of clips that are known, of those that have one."""
        parts = audio * resize_signal(known.keep[:, None].to(audio), audio.shape[-1])
        titles = [group_of(index, metadata) for index, (_, metadata) in enumerate(clips)]
        told = zip(titles, parts, known.keep.any(dim=1).tolist(), strict=True)
        return [Demo(f"{title}, given", part, "masked", title) for title, part, some in told if some]

    def _references(self, module: Any, clips: Clips, known: Known) -> list[Demo]:
        demos = []
        for number, reference in enumerate(known.references, start=1):
            pretransform = module.sampling_model.pretransform
            heard = reference.latents if pretransform is None else pretransform.decode(reference.latents)
            for index, (_, metadata) in enumerate(clips):
                title, real = group_of(index, metadata), int(reference.real[index].sum())
                length = real * heard.shape[-1] // reference.latents.shape[-1]
                if length:
                    demos.append(Demo(f"{title}, reference {number}", heard[index, :, :length].float().cpu(), "condition", title))
        return demos


def _cut(known: Known, count: int) -> Known:
    """Of the first `count` clips."""
    references = tuple(replace(part, latents=part.latents[:count], real=part.real[:count]) for part in known.references)
    return Known(known.latents[:count], known.keep[:count], references)
