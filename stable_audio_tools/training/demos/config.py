"""The `demo` block of each kind of training: when demos are made, and of what."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from stable_audio_tools.configs.base import StrictModel
from stable_audio_tools.configs.errors import ConfigError, Problem


class DemoConfig(StrictModel):
    """When demos are made."""

    demo_every: int = Field(2000, gt=0, description="train steps between two demos")


class AutoencoderDemoConfig(DemoConfig):
    max_demos: int = Field(8, gt=0, description="clips reconstructed each time")


class DiffusionUncondDemoConfig(DemoConfig):
    """Clips from the same noise each time."""

    demo_steps: int = Field(250, gt=0, description="sampler steps")
    num_demos: int = Field(8, gt=0, description="clips made each time")
    sampler_type: str | None = Field(None, description="default: the objective's own")
    seed: int = Field(0, ge=0, description="demo i starts from noise (seed, i)")


class DiffusionAutoencoderDemoConfig(AutoencoderDemoConfig):
    """The same clips each time, encoded and sampled back from the same noise."""

    demo_steps: int = Field(250, gt=0, description="sampler steps")
    seed: int = Field(0, ge=0, description="demo i is sampled from noise (seed, i)")


class AudioDisplayParams(StrictModel):
    pre_encoded: bool = Field(False, description="the metadata hold latents of the model's pretransform, which are decoded")
    display_mix: bool = Field(False, description="also what is generated and this audio at once, as for an accompaniment")


class AudioDisplay(StrictModel):
    """Audio in the metadata that demos show beside what is generated."""

    id: str = Field(description="its key in the metadata")
    type: Literal["audio", "audio_dict"] = Field(description="one clip, or an object of clips by name, whose sum is shown")
    config: AudioDisplayParams = AudioDisplayParams()


class DiffusionCondDemoConfig(DemoConfig):
    """Fixed prompts, each rendered at every guidance scale with the same seed each time."""

    demo_steps: int = Field(250, gt=0, description="sampler steps")
    num_demos: int | None = Field(None, gt=0, description="number of prompts; default: all of demo_cond, else 4 from the data")
    demo_cfg_scales: tuple[float, ...] = Field((3.0,), min_length=1, description="guidance scales, each makes a set of demos")
    demo_cond: tuple[dict[str, Any], ...] = Field((), description="metadata of each demo, such as its prompt; empty: taken from the data")
    demo_cond_from_batch: bool = Field(False, description="take the metadata from the data even if demo_cond is given")
    sampler_type: str | None = Field(None, description="default: the objective's own")
    seed: int = Field(0, ge=0, description="demo i of every set starts from noise (seed, i)")
    display_audio_cond: bool = Field(False, description='show the audio that the metadata have as "audio"')
    cond_display_configs: tuple[AudioDisplay, ...] | None = Field(None, description="show other audio that the metadata have")

    @property
    def displays(self) -> tuple[AudioDisplay, ...]:
        """All audio of the metadata that is shown."""
        plain = (AudioDisplay(id="audio", type="audio"),) if self.display_audio_cond else ()
        return plain + (self.cond_display_configs or ())

    @model_validator(mode="after")
    def _what_is_shown_is_there(self) -> DiffusionCondDemoConfig:
        if self.displays and self.demo_cond and not self.demo_cond_from_batch:
            key = "display_audio_cond" if self.display_audio_cond else "cond_display_configs"
            message = "it shows audio of the metadata, and demo_cond, which is JSON, holds none"
            raise ConfigError([Problem((key,), message, "set demo_cond_from_batch to true, or remove demo_cond", on_key=True)])
        return self

    @model_validator(mode="after")
    def _as_many_prompts_as_demos(self) -> DiffusionCondDemoConfig:
        if self.demo_cond and self.num_demos is not None and self.num_demos != len(self.demo_cond):
            raise ValueError(
                f"num_demos is {self.num_demos} but demo_cond has {len(self.demo_cond)} entries; make them equal or leave num_demos out"
            )
        return self


class LanguageModelDemoConfig(DemoConfig):
    """Samples under fixed conditions and continuations of clips, each at every guidance scale with the same seed each time."""

    num_demos: int | None = Field(None, gt=0, description="number of samples; default: all of demo_cond, else 8")
    demo_cfg_scales: tuple[float, ...] = Field((1.0,), min_length=1, description="guidance scales, each makes a set of demos")
    demo_cond: tuple[dict[str, Any], ...] | None = Field(
        None, min_length=1, description="metadata of each sample, such as its prompt, or one for all; default: those of the first clips"
    )
    demo_duration_s: float | None = Field(None, gt=0, description="seconds of each demo, rounded up to whole frames; default: sample_size")
    num_continuations: int = Field(2, ge=0, description="clips of the data that are continued; 0: none")
    prefix_share: float = Field(0.25, gt=0, lt=1, description="share of a clip that its continuation is given")
    temperature: float = Field(1.0, ge=0, description="of the tokens' distribution; 0: always the most likely one")
    top_k: int | None = Field(None, gt=0, description="draw from that many of the most likely tokens, instead of top_p")
    top_p: float | None = Field(None, gt=0, le=1, description="draw from the most likely tokens that have this probability; default: 0.95")
    seed: int = Field(0, ge=0, description="sample i of every set is drawn by (seed, i)")

    @model_validator(mode="after")
    def _settings_take_effect(self) -> LanguageModelDemoConfig:
        problems, count = [], len(self.demo_cond or ())
        if count > 1 and self.num_demos not in (None, count):
            message = f"num_demos is {self.num_demos} but demo_cond has {count} entries"
            problems.append(Problem(("num_demos",), message, "make them equal, give one entry for all, or leave num_demos out"))
        if self.top_k is not None and self.top_p is not None:
            problems.append(Problem(("top_k",), "top_k and top_p exclude each other", "keep one"))
        if not self.num_continuations and "prefix_share" in self.model_fields_set:
            problems.append(Problem(("prefix_share",), "has no effect without continuations", "remove it, or raise num_continuations"))
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def num_samples(self) -> int:
        return self.num_demos or len(self.demo_cond or ()) or 8

    @property
    def nucleus(self) -> float:
        """The probability to draw from; 0 where top_k says what to draw from."""
        return self.top_p or (0.95 if self.top_k is None else 0.0)
