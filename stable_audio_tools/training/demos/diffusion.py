"""Demos of a conditional diffusion model: fixed prompts at each guidance scale, the same noise every time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from stable_audio_tools.inference.generation import generate_diffusion_cond
from stable_audio_tools.training.config import DiffusionCondDemoConfig
from stable_audio_tools.training.demos.base import Demo, DemoCallback
from stable_audio_tools.training.prepare import padding_mask

NUM_DEMOS_FROM_DATA = 4


class DiffusionCondDemoCallback(DemoCallback):
    """Renders `demo.demo_cond`, or the metadata of the first clips of the data, through `generate_diffusion_cond`.

    Args:
        config: the `demo` section.
        sample_size: samples of each demo.
        kwargs: `sample_rate`, `folder`, `batches` of `DemoCallback`.
    """

    def __init__(self, config: DiffusionCondDemoConfig, *, sample_size: int, **kwargs: Any):
        super().__init__(config.demo_every, **kwargs)
        self.config, self.sample_size = config, sample_size
        self._from_data: tuple[list[Mapping[str, Any]], list[Demo]] | None = None

    def render(self, module: Any) -> list[Demo]:
        conditions, originals = self._conditions()
        return originals + [demo for scale in self.config.demo_cfg_scales for demo in self._at_scale(module, conditions, scale)]

    def _at_scale(self, module: Any, conditions: list[Mapping[str, Any]], scale: float) -> list[Demo]:
        audio = generate_diffusion_cond(
            module.sampling_model,
            steps=self.config.demo_steps,
            cfg_scale=scale,
            conditioning=conditions,
            batch_size=len(conditions),
            sample_size=self.sample_size,
            seed=self.config.seed,
            device=module.device,
            sampler_type=self.config.sampler_type,
        )
        return [self._demo(i, condition, audio[i], scale) for i, condition in enumerate(conditions)]

    def _demo(self, index: int, condition: Mapping[str, Any], audio: Any, scale: float) -> Demo:
        prompt = condition.get("prompt")
        group = f"{index + 1}. {prompt}" if prompt else f"{index + 1}"
        info = {k: v for k, v in condition.items() if k != "prompt" and isinstance(v, str | int | float)}
        return Demo(f"{group}, cfg {scale:g}", audio, "generated", group, prompt, scale, self.config.seed, info)

    def _conditions(self) -> tuple[list[Mapping[str, Any]], list[Demo]]:
        """The metadata to render, and the clips they came with where they are from the data."""
        if self.config.demo_cond and not self.config.demo_cond_from_batch:
            return list(self.config.demo_cond), []
        if self._from_data is None:
            self._from_data = self._take_from_data(self.config.num_demos or NUM_DEMOS_FROM_DATA)
        return self._from_data

    def _take_from_data(self, count: int) -> tuple[list[Mapping[str, Any]], list[Demo]]:
        if self.batches is None:
            raise ValueError("the demo config has no demo_cond, and there is no data to take conditions from")
        clips = list(islice(((a, m) for audio, metadata in self.batches for a, m in zip(audio, metadata, strict=True)), count))
        originals = []
        for index, (audio, metadata) in enumerate(clips):
            prompt = metadata.get("prompt")
            real = int(padding_mask([metadata], audio[None]).sum())
            title = f"{index + 1}. {prompt}" if prompt else f"{index + 1}"
            originals.append(Demo(f"{title}, original", audio[:, :real], "original", title, prompt))
        return [metadata for _, metadata in clips], originals
