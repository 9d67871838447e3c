"""How a training module is measured: clips of its sampling weights beside the items that they are made for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor

from stable_audio_tools.evaluation.embedders import build_embedder
from stable_audio_tools.evaluation.measure import Measure
from stable_audio_tools.evaluation.metrics import measure
from stable_audio_tools.evaluation.model_clips import Batch, compared, made_pairs, reconstructs
from stable_audio_tools.models.lm import AudioLanguageModel
from stable_audio_tools.training.config import AnyRun
from stable_audio_tools.training.evaluation import NUM_CLIPS
from stable_audio_tools.training.prepare import to_latents, unpacked
from stable_audio_tools.training.strategies.next_token import stored_tokens


@dataclass(frozen=True)
class Moving:
    """Lets somebody know whenever a model gets on."""

    moved: Callable[[], None]

    def begin(self, batch: int) -> None:
        self.moved()

    def __call__(self, step: int, steps: int) -> None:
        self.moved()


class ModuleEvaluation:
    """Called with a training module, it measures what `training.evaluation` asks for.

    The items and their order are the same every time, and so is the noise: two evaluations differ by the weights alone.

    Args:
        run: the run's config, which has the section.
        batches: of the data to compare with, the same at every pass; kept from the first evaluation on.
    """

    def __init__(self, run: AnyRun, batches: Iterable[Batch]):
        assert run.training.evaluation is not None
        self.run, self.section, self.batches = run, run.training.evaluation, batches
        self._kept: list[Batch] | None = None

    def __call__(self, module: Any, moved: Callable[[], None]) -> list[Measure]:
        """
        Args:
            moved: called whenever the model gets on, and before the clips are measured.
        """
        model, sampling = module.sampling_model, self.section.sampling(self.run.training.demo)
        count = self.section.num_clips or NUM_CLIPS
        if self._kept is None:
            self._kept = self._first(module, count)
        pairs = list(made_pairs(model, self._kept, count, sampling, self.run.sample_size, Moving(moved)))
        moved()
        comparison = compared(
            pairs,
            self.run.sample_rate,
            paired=reconstructs(self.run),
            embedders=[build_embedder(self.section.embedder, model, str(module.device))],
            recipe={**sampling.to_dict(), "train_step": module.train_step},
        )
        return measure(self.section.chosen(comparison.needs_met), comparison)

    def _first(self, module: Any, count: int) -> list[Batch]:
        """The first batches, as audio on the CPU."""
        batches = -(-count // self.section.batch_size)
        stored = self.section.dataset is None and getattr(module, "pre_encoded", False)
        found = islice(map(unpacked, self.batches), batches)
        return [(_decoded(module.sampling_model, signal) if stored else signal, metadata) for signal, metadata in found]


def _decoded(model: Any, signal: Tensor) -> Tensor:
    """(B, C, T) audio of stored latents or tokens."""
    weights = next(model.parameters())
    if isinstance(model, AudioLanguageModel):
        return model.decode_tokens(stored_tokens(signal, model).to(weights.device)).float().cpu()
    latents = to_latents(signal.to(weights), model.pretransform, pre_encoded=True)
    return (latents if model.pretransform is None else model.pretransform.decode(latents)).float().cpu()
