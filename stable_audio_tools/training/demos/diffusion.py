"""Demos of diffusion models: the same noise every time, for a conditional model the same prompts at each guidance scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor

from stable_audio_tools.diffusion.known import Known
from stable_audio_tools.inference.generation import generate_diffusion_cond, generate_diffusion_uncond, isolated_generators
from stable_audio_tools.models.conditioners.base import Condition
from stable_audio_tools.models.conditioners.routing import resize_signal
from stable_audio_tools.models.inpainting import InpaintMasks, inpaint_conditions
from stable_audio_tools.training.demos.base import Demo, DemoCallback
from stable_audio_tools.training.demos.config import AudioDisplay, DiffusionCondDemoConfig, DiffusionUncondDemoConfig
from stable_audio_tools.training.prepare import latent_batch, padding_mask, to_latents

Metadata = Sequence[Mapping[str, Any]]
Clips = Sequence[tuple[Tensor, Mapping[str, Any]]]


class DiffusionUncondDemoCallback(DemoCallback):
    """Renders `num_demos` clips through `generate_diffusion_uncond`.

    Args:
        config: the `demo` section.
        sample_size: samples of each demo.
        kwargs: `sample_rate`, `folder`, `batches` of `DemoCallback`.
    """

    def __init__(self, config: DiffusionUncondDemoConfig, *, sample_size: int, **kwargs: Any):
        super().__init__(config.demo_every, **kwargs)
        self.config, self.sample_size = config, sample_size

    def render(self, module: Any) -> list[Demo]:
        audio = generate_diffusion_uncond(
            module.sampling_model,
            steps=self.config.demo_steps,
            batch_size=self.config.num_demos,
            sample_size=self.sample_size,
            seed=self.config.seed,
            device=module.device,
            sampler_type=self.config.sampler_type,
        )
        return [Demo(f"{i}", clip, "generated", f"{i}", seed=self.config.seed) for i, clip in enumerate(audio, start=1)]


class DiffusionCondDemoCallback(DemoCallback):
    """Renders `demo.demo_cond`, or the metadata of the first clips of the data, through `generate_diffusion_cond`.

    clips_from_data: how many clips are taken from the data where the config does not say.

    Args:
        config: the `demo` section.
        sample_size: samples of each demo.
        kwargs: `sample_rate`, `folder`, `batches` of `DemoCallback`.
    """

    clips_from_data: ClassVar[int] = 4

    def __init__(self, config: DiffusionCondDemoConfig, *, sample_size: int, **kwargs: Any):
        super().__init__(config.demo_every, **kwargs)
        self.config, self.sample_size = config, sample_size
        self._clips: list[tuple[Tensor, Mapping[str, Any]]] | None = None

    def render(self, module: Any) -> list[Demo]:
        if self._own_conditions:
            metadata, originals = self._own_conditions, []
        else:
            clips = self._first_clips()
            metadata = [each for _, each in clips]
            originals = self._originals(clips, self._audio(module, torch.stack([signal for signal, _ in clips])))
        return originals + self._generated(module, metadata, conditioning=metadata)

    @property
    def _own_conditions(self) -> Metadata:
        """The metadata that the config gives; empty where the data's own are wanted."""
        return () if self.config.demo_cond_from_batch else list(self.config.demo_cond)

    def _generated(
        self,
        module: Any,
        metadata: Metadata,
        *,
        conditioning: Metadata | None = None,
        tensors: Mapping[str, Condition] | None = None,
        known: Known | None = None,
    ) -> list[Demo]:
        """The audio that conditions hold, and a demo of each item at each guidance scale, alone and with it."""
        heard = [(display, self._heard(module, metadata, display)) for display in self.config.displays]
        groups = [group_of(index, each) for index, each in enumerate(metadata)]
        made = [Demo(f"{g}, {d.id}", clip, "condition", g) for d, clips in heard for g, clip in zip(groups, clips, strict=True)]
        for scale in self.config.demo_cfg_scales:
            audio = generate_diffusion_cond(
                module.sampling_model,
                steps=self.config.demo_steps,
                cfg_scale=scale,
                conditioning=conditioning,
                conditioning_tensors=tensors,
                batch_size=len(metadata),
                sample_size=self.sample_size,
                seed=self.config.seed,
                device=module.device,
                sampler_type=self.config.sampler_type,
                known=known,
            )
            made += [self._demo(index, each, audio[index], scale) for index, each in enumerate(metadata)]
            for display, clips in heard:
                if display.config.display_mix:
                    items = enumerate(zip(metadata, audio, clips, strict=True))
                    made += [self._mixed(index, *item, scale, display.id) for index, item in items]
        return made

    def _heard(self, module: Any, metadata: Metadata, display: AudioDisplay) -> list[Tensor]:
        """The audio (C, T) of each item that `display` speaks of."""
        found = [each[display.id] if display.type == "audio" else torch.stack([*each[display.id].values()]) for each in metadata]
        clips = [signal if signal.ndim == 3 else signal[None] for signal in found]
        if display.config.pre_encoded:
            model = module.sampling_model
            weights = next(model.model.parameters())
            clips = [model.pretransform.decode(latents.to(weights)) for latents in clips]
        return [audio.float().sum(0) for audio in clips]

    def _mixed(self, index: int, condition: Mapping[str, Any], generated: Tensor, audio: Tensor, scale: float, name: str) -> Demo:
        group, length = group_of(index, condition), min(generated.shape[-1], audio.shape[-1])
        both = generated.cpu()[:, :length] + audio.cpu()[:, :length]
        return Demo(f"{group}, with {name}, cfg {scale:g}", both, "mix", group, condition.get("prompt"), scale, self.config.seed)

    def _demo(self, index: int, condition: Mapping[str, Any], audio: Tensor, scale: float) -> Demo:
        group = group_of(index, condition)
        info = {k: v for k, v in condition.items() if k != "prompt" and isinstance(v, str | int | float)}
        return Demo(f"{group}, cfg {scale:g}", audio, "generated", group, condition.get("prompt"), scale, self.config.seed, info)

    def _first_clips(self) -> list[tuple[Tensor, Mapping[str, Any]]]:
        """Clips or stored latents of the data with their metadata, the same ones each time."""
        if self._clips is None:
            if self.batches is None:
                raise ValueError("there is no data to take the demos' clips or conditions from")
            count = len(self.config.demo_cond) or self.config.num_demos or self.clips_from_data
            pairs = (pair for signal, metadata in self.batches for pair in zip(signal, metadata, strict=True))
            self._clips = list(islice(pairs, count))
        return self._clips

    def _audio(self, module: Any, signal: Tensor) -> Tensor:
        """(B, C, T) what can be heard of clips, or of stored latents."""
        pretransform = module.sampling_model.pretransform
        if not module.pre_encoded or pretransform is None:
            return signal
        weights = next(module.sampling_model.model.parameters())
        return pretransform.decode(to_latents(signal.to(weights), pretransform, pre_encoded=True)).to(signal)

    def _originals(self, clips: Clips, audio: Tensor) -> list[Demo]:
        """What each clip holds beside padding."""
        originals = []
        for index, (clip, (signal, metadata)) in enumerate(zip(audio, clips, strict=True)):
            real = int(padding_mask([metadata], signal[None]).sum()) * clip.shape[-1] // signal.shape[-1]
            group = group_of(index, metadata)
            originals.append(Demo(f"{group}, original", clip[:, :real], "original", group, metadata.get("prompt")))
        return originals


class DiffusionCondInpaintDemoCallback(DiffusionCondDemoCallback):
    """Fills gaps in the first clips of the data: each original, what of it the model is given, and what it makes.

    Masks are drawn as in training, once and for all, but without those that give nothing, if there are others.
    `demo.demo_cond`, where given, takes the place of the clips' own metadata.

    Args:
        masks: how training draws them.
    """

    clips_from_data = 8  # upstream's

    def __init__(self, config: DiffusionCondDemoConfig, masks: InpaintMasks, **kwargs: Any):
        super().__init__(config, **kwargs)
        self.masks = masks.partial()

    def render(self, module: Any) -> list[Demo]:
        clips, model = self._first_clips(), module.sampling_model
        signal = torch.stack([signal for signal, _ in clips])
        metadata = [each for _, each in clips]
        with isolated_generators(module.device, self.config.seed):
            batch = latent_batch((signal.to(next(model.model.parameters())), metadata), model, pre_encoded=module.pre_encoded)
            mask = self.masks.draw(batch.mask)
        shown = list(self._own_conditions) or metadata
        conditions = model.conditioner(shown, module.device) | inpaint_conditions(batch.latents, mask)
        audio = self._audio(module, signal)
        given = self._given(clips, audio * resize_signal(mask[:, None].to(audio), audio.shape[-1]))
        return self._originals(clips, audio) + given + self._generated(module, shown, tensors=conditions)

    def _given(self, clips: Clips, audio: Tensor) -> list[Demo]:
        titles = [group_of(index, metadata) for index, (_, metadata) in enumerate(clips)]
        return [Demo(f"{title}, given", clip, "masked", title) for title, clip in zip(titles, audio, strict=True)]


def group_of(index: int, metadata: Mapping[str, Any]) -> str:
    """What demos of one item are shown under."""
    prompt = metadata.get("prompt")
    return f"{index + 1}. {prompt}" if prompt else f"{index + 1}"
