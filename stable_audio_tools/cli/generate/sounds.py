"""Conditions that are sounds: named by their files, as in `--cond KEY=FILE`, and read when a batch is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from stable_audio_tools.audio.io import load_audio, probe
from stable_audio_tools.configs.errors import ConfigError, Problem, value_text
from stable_audio_tools.configs.suggest import did_you_mean
from stable_audio_tools.models.conditioners.audio import EncodingConditioner, SourceMixConditioner
from stable_audio_tools.models.conditioners.clap_audio import CLAPAudioConditioner

from .makers import Clip


@dataclass(frozen=True)
class SoundCondition:
    """What a condition takes: audio at `sample_rate` Hz in whole frames of `multiple` samples.

    sources: of a mix, whose value is an object of files by source; None: one file. fills: it is as long as the clip.
    """

    sample_rate: int
    multiple: int = 1
    sources: tuple[str, ...] | None = None
    fills: bool = True

    @classmethod
    def of(cls, conditioner: Any, params: Mapping[str, Any], model_rate: int) -> SoundCondition | None:
        """Of a conditioner whose config is `params`; None: it takes something else."""
        if isinstance(conditioner, CLAPAudioConditioner):
            return cls(conditioner.sample_rate, fills=False)
        if not isinstance(conditioner, EncodingConditioner) or params.get("pre_encoded"):
            return None
        sources = conditioner.source_keys if isinstance(conditioner, SourceMixConditioner) else None
        return cls(params.get("sample_rate", model_rate), conditioner.ratio, sources)

    def problems(self, value: Any) -> Iterator[Problem]:
        """What is wrong with the value that was given."""
        if self.sources is None:
            yield from _file_problems(value)
        elif not isinstance(value, Mapping):
            example = ", ".join(f'"{name}": "a.wav"' for name in self.sources[:1])
            yield Problem((), f"expected an object of files by source, got {value_text(value)}", f"such as {{{example}}}")
        else:
            for name, file in value.items():
                unknown = [Problem((), f"{name}: no such source", did_you_mean(name, self.sources))] if name not in self.sources else []
                yield from unknown or _file_problems(file)

    def read(self, value: Any, seconds: float) -> Any:
        """The audio (C, T) of the file, or of each source."""
        if isinstance(value, Mapping):
            return {name: self._audio(file, seconds) for name, file in value.items()}
        return self._audio(value, seconds)

    def _audio(self, path: str, seconds: float) -> Tensor:
        if not self.fills:
            return load_audio(path, sample_rate=self.sample_rate)[0]
        frames = -(-round(seconds * self.sample_rate) // self.multiple) * self.multiple
        audio, _ = load_audio(path, sample_rate=self.sample_rate, frames=frames)
        return F.pad(audio, (0, frames - audio.shape[-1]))


def read_sounds(clip: Clip, sounds: Mapping[str, SoundCondition], sample_rate: int) -> Clip:
    """The clip with audio in place of files' names, by metadata key."""

    def read(item: Mapping[str, Any]) -> dict[str, Any]:
        seconds = clip.length / sample_rate
        return {key: sounds[key].read(value, seconds) if key in sounds else value for key, value in item.items()}

    return replace(clip, metadata=read(clip.metadata), negative=None if clip.negative is None else read(clip.negative))


def _file_problems(value: Any) -> Iterator[Problem]:
    if not isinstance(value, str):
        yield Problem((), f"expected the name of an audio file, got {value_text(value)}")
        return
    try:
        probe(value)
    except ConfigError as error:
        yield Problem((), str(error))
