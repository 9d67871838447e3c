"""How a training module is measured: clips of its sampling weights beside the items that they are made for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor, nn

from stable_audio_tools.evaluation.embedders import Embedder, build_embedder
from stable_audio_tools.evaluation.measure import Measure
from stable_audio_tools.evaluation.metrics import measure
from stable_audio_tools.evaluation.model_clips import Batch, compared, made_clips, paired_up, reconstructs
from stable_audio_tools.models.lm import AudioLanguageModel
from stable_audio_tools.training.config import AnyRun
from stable_audio_tools.training.evaluation import NUM_CLIPS, OWN
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
    """What `training.evaluation` asks for, of a training module.

    The items and their order are the same every time, and so is the noise: two evaluations differ by the weights alone.

    Args:
        run: the run's config, which has the section.
        batches: of the data to compare with, the same at every pass; kept from the first evaluation on.
    """

    def __init__(self, run: AnyRun, batches: Iterable[Batch]):
        assert run.training.evaluation is not None
        self.run, self.section, self.batches = run, run.training.evaluation, batches
        self.sampling = self.section.sampling(run.training.demo)
        self._kept: list[Batch] = []
        self._embedder: Embedder | None = None

    def make(self, module: Any, rank: int, world_size: int, moved: Callable[[], None]) -> list[list[Tensor]]:
        """The clips of every `world_size`-th batch, from number `rank` on."""
        self._kept = self._kept or self._first(module)
        numbers = range(rank, len(self._kept), world_size)
        return [self._clips(module.sampling_model, number, Moving(moved)) for number in numbers]

    def _clips(self, model: nn.Module, number: int, progress: Moving) -> list[Tensor]:
        first = number * self.section.batch_size
        return made_clips(model, self._kept[number], first, self.sampling, self.run.sample_size, progress)

    def measure(self, module: Any, shares: Sequence[list[list[Tensor]]]) -> list[Measure]:
        made = [shares[index % len(shares)][index // len(shares)] for index in range(len(self._kept))]
        pairs = [pair for batch, clips in zip(self._kept, made, strict=True) for pair in paired_up(batch, clips)]
        comparison = compared(
            pairs,
            self.run.sample_rate,
            paired=reconstructs(self.run),
            embedders=[self._built(module)],
            recipe={**self.sampling.to_dict(), "train_step": module.train_step},
        )
        return measure(self.section.chosen(comparison.needs_met), comparison)

    def _built(self, module: Any) -> Embedder:
        """The embedder; one with weights of its own is kept."""
        if self.section.embedder == OWN:
            return build_embedder(OWN, module.sampling_model)
        self._embedder = self._embedder or build_embedder(self.section.embedder, device=str(module.device))
        return self._embedder

    def _first(self, module: Any) -> list[Batch]:
        """The first batches, as audio on the CPU, with as many items in all as there are to be."""
        count, size = self.section.num_clips or NUM_CLIPS, self.section.batch_size
        stored = self.section.dataset is None and getattr(module, "pre_encoded", False)
        found = enumerate(islice(map(unpacked, self.batches), -(-count // size)))
        parts = ((signal[: count - index * size], metadata[: count - index * size]) for index, (signal, metadata) in found)
        return [(_decoded(module.sampling_model, signal) if stored else signal, metadata) for signal, metadata in parts]


def _decoded(model: Any, signal: Tensor) -> Tensor:
    """(B, C, T) audio of stored latents or tokens."""
    weights = next(model.parameters())
    if isinstance(model, AudioLanguageModel):
        return model.decode_tokens(stored_tokens(signal, model).to(weights.device)).float().cpu()
    latents = to_latents(signal.to(weights), model.pretransform, pre_encoded=True)
    return (latents if model.pretransform is None else model.pretransform.decode(latents)).float().cpu()
