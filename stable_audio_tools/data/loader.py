"""The loader that training iterates: batches in a reproducible order, from any number of workers, resumable exactly.

What a batch holds depends on (seed, epoch, position) alone. `state_dict` is therefore three numbers, and a loader that gets
them goes on with the very next batch, whatever its number of workers. Where batches are of clips of similar length, a fourth
number, how many clips were brought together, keeps the order when the number of ranks or the batch size changes.
"""

from __future__ import annotations

import atexit
import logging
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stable_audio_tools.configs.errors import ConfigError, Problem
from stable_audio_tools.data.buckets import ANY_LENGTH, LengthGrid, by_length
from stable_audio_tools.data.order import batches_in, epoch_length, epoch_order, rank_batches, taken_by
from stable_audio_tools.data.resampled import Draws
from stable_audio_tools.data.types import Batch, Fault, ItemKey, Part, Sample, collate, fetch, name_of
from stable_audio_tools.data.workers import (
    MAX_WAIT_S,
    NO_ITEM,
    SHARED_MEMORY,
    Board,
    StartMethod,
    WatchedLoader,
    WorkerLostError,
    is_out_of_shared_memory,
    listen_to_trainer_only,
)

log = logging.getLogger(__name__)


class AudioLoader:
    """Yields `(audio (B, C, T) float32, tuple of B metadata dicts)`; a pass ends with the epoch.

    A pass that was left early is taken up by the next one, so that no item is lost or repeated whoever counts epochs.
    Lightning saves and restores the state by itself.

    Args:
        dataset: map-style; see `data.types.fetch` for what it may offer. A `parts` attribute weights stretches of it. With
            `lengths`, (items,) numbers of samples or frames, batches are of items of similar length.
        batch_size: items a rank gets at once.
        shuffle: a new order and new crops in every epoch. Without it, which is for evaluation, every pass is the same
            and begins at the beginning, and holds all items: `drop_last` applies to training.
        drop_last: leave out what does not fill a batch on every rank, other items in each epoch.
        num_workers: processes that make batches; 0: this one does.
        grid: lengths that batches of a dataset with `lengths` may have.
        draws: what epochs are made of; left out: of each item once, or as often as its part's weight says.
        rank, world_size: left out: those of torch.distributed at the time of use, if it runs.
        max_wait_s: how long a worker may be at one item while its batch is waited for; then the run ends with its name.
        start_method: how worker processes start; left out: Python's default on this system.

    Raises:
        ConfigError: an epoch does not fill one batch; while iterating: the data cannot be read any more.
        WorkerLostError: while iterating: a worker died or hangs.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        num_workers: int = 0,
        grid: LengthGrid = ANY_LENGTH,
        draws: Draws | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        max_wait_s: float = MAX_WAIT_S,
        start_method: StartMethod | None = None,
    ):
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"batch_size is {batch_size} and num_workers {num_workers}; expected at least 1 and 0")
        if (rank is None) != (world_size is None) or (rank is not None and world_size is not None and not 0 <= rank < world_size):
            raise ValueError(f"rank is {rank} of {world_size}; give both, 0 <= rank < world_size, or neither")
        self.dataset, self.batch_size, self.seed, self.num_workers = dataset, batch_size, seed, num_workers
        self.shuffle, self.drop_last = shuffle, drop_last and shuffle
        self.parts: Sequence[Part] = getattr(dataset, "parts", None) or (Part(len(dataset)),)  # type: ignore[arg-type]
        self.draws = draws
        self.lengths: Tensor | None = getattr(dataset, "lengths", None)
        self.grid = grid
        self.faults: dict[str, str] = {}
        self.sampler, self.batch_sampler = self, None  # where Lightning looks for `set_epoch`
        self._ranks = (rank, world_size)
        self._epoch = self._position = self._step = 0
        self._begun = self._loaded = False
        self._plan = _Plan()
        board = Board(num_workers)
        options = {
            "batch_size": None,
            "sampler": self._plan,
            "num_workers": num_workers,
            "collate_fn": _unchanged,
            "worker_init_fn": listen_to_trainer_only,
            "persistent_workers": num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator(),  # or each pass would draw a number from the global generator, also after a resume
            "multiprocessing_context": start_method if num_workers else None,
        }
        source = _Source(dataset, None if self.lengths is None else grid, board)
        self._torch_loader = WatchedLoader(source, board, source.name, max_wait_s, options)
        self._check_size()
        _LIVE.add(self)

    def __len__(self) -> int:
        """Batches in an epoch, on each rank."""
        return self._count(self._epoch_items(), self.ranks[1])

    @property
    def ranks(self) -> tuple[int, int]:
        """This process's rank, and the number of ranks."""
        rank, world_size = self._ranks
        if rank is not None and world_size is not None:
            return rank, world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Begin with this epoch instead of epoch 0; without effect once a batch was delivered or a state loaded.

        Lightning says before each epoch which one it is. After a checkpoint that ended an epoch it restores no state, and
        this is all that a new loader hears; in other cases its count may be ahead of the data.
        """
        if not self._begun:
            self._epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """seed, epoch and position: how many items of the epoch the batches delivered so far took, on all ranks together.

        And, for a data set with `lengths`, step: how many items of similar length the epoch's order brings together.
        """
        state = {"seed": self.seed, "epoch": self._epoch, "position": self._position}
        return state if self.lengths is None else {**state, "step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on, in the next pass, after the batch that was the last one when `state` was taken."""
        self.seed, self._epoch, self._position = state["seed"], state["epoch"], state["position"]
        self._step = state.get("step", 0)  # none: this run's data had no lengths, and what is left of its epoch cannot be told
        self._begun = self._loaded = True

    def close(self) -> None:
        """End the worker processes. They also end with the loader and with the program; another pass starts new ones."""
        self._torch_loader.close()

    def __iter__(self) -> Iterator[tuple[Tensor, tuple[dict[str, Any], ...]]]:
        # All of this runs at the first `next`: Lightning makes the iterator first and says which epoch it is then.
        self._check_size()
        rank, world_size = self.ranks
        start, order = self._next_stretch(world_size)
        shares = rank_batches(order, start, self.batch_size, rank, world_size, drop_last=self.drop_last)
        self._plan.batches = ([ItemKey(self.seed, *row) for row in rows.tolist()] for rows in shares)
        count = self._count(len(order) - start, world_size)
        for number, batch in enumerate(self._batches(), 1):
            self._begun, self._loaded = True, False
            if number < count:
                self._position = start + taken_by(number, len(order) - start, self.batch_size, world_size)
            else:
                self._epoch, self._position = self._epoch + 1, 0
            self._report(batch.faults)
            yield batch.unpack()

    def _next_stretch(self, world_size: int) -> tuple[int, Tensor]:
        """Where the next pass starts, and the order of its epoch."""
        if not self.shuffle and not self._loaded:
            self._position = 0
        items = self._epoch_items()
        if not self._count(items - self._position, world_size):  # the data, or the batch size, is not what it was
            log.warning("resumed at item %d of %d, so the next epoch begins", self._position, items)
            self._epoch, self._position = self._epoch + 1, 0
        if self.draws is not None:
            order = self.draws.order(self.seed, self._epoch, items)
        else:
            order = epoch_order(self.parts, self.seed, self._epoch if self.shuffle else 0, shuffle=self.shuffle)
        if self.lengths is not None:
            if not (self._position and self._step):
                self._step = self.batch_size * world_size
            names = (self.seed, "batches", self._epoch) if self.shuffle else ()
            order = by_length(order, self.lengths, self._step, *names)
        return self._position, order

    def _epoch_items(self) -> int:
        """Of all ranks."""
        return epoch_length(self.parts) if self.draws is None else self.draws.epoch_steps * self.batch_size * self.ranks[1]

    def _count(self, items: int, world_size: int) -> int:
        return batches_in(max(items, 0), self.batch_size, world_size, drop_last=self.drop_last)

    def _batches(self) -> Iterator[Batch]:
        source: Iterator[Any] | None = None
        while True:
            lost = ""
            try:
                source = iter(self._torch_loader) if source is None else source
                made = next(source)
            except StopIteration:
                return
            except WorkerLostError as error:
                lost = str(error)
            if lost:  # not inside `except`: the error would hold on to the workers, which must end
                source = None
                self.close()
                raise WorkerLostError(lost)
            if isinstance(made, _Failure):
                raise made.kind(made.message)
            yield made

    def _check_size(self) -> None:
        if not len(self):
            step, items = self.batch_size * self.ranks[1], self._epoch_items()
            fix = f'use "drop_last": false in the dataset config, or a batch size of at most {max(items // self.ranks[1], 1)}'
            raise ConfigError([Problem((), f"{items} items do not fill one batch of {step}", fix)], "dataset")

    def _report(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            if fault.path not in self.faults:
                self.faults[fault.path] = fault.cause
                log.warning("not served, another file stands in: %s: %s", fault.path, fault.cause)


_LIVE: weakref.WeakSet[AudioLoader] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """While workers can still be asked to end: Python itself would stop them wherever they are."""
    for loader in list(_LIVE):
        loader.close()


class _Plan:
    """The batches that torch's loader is to make; refilled before each pass, since workers live through all of them."""

    def __init__(self) -> None:
        self.batches: Iterable[list[ItemKey]] = ()

    def __iter__(self) -> Iterator[list[ItemKey]]:
        return iter(self.batches)


class _Failure(NamedTuple):
    """An error on its way out of a worker, where torch would bury it under a traceback."""

    kind: type[Exception]
    message: str


class _Source(Dataset[Any]):
    """Whole batches by the keys of their items: what runs in a worker."""

    def __init__(self, dataset: Dataset[Any], grid: LengthGrid | None, board: Board):
        self.dataset, self.grid, self.board = dataset, grid, board

    def __getitem__(self, keys: list[ItemKey]) -> Batch | _Failure:
        try:
            return self._batch(fetch(self.dataset, keys, self.board.at))
        except ConfigError as error:
            return _Failure(ConfigError, str(error))
        finally:
            self.board.at(NO_ITEM)

    def _batch(self, samples: Sequence[Sample]) -> Batch | _Failure:
        try:
            return collate(samples, self.grid)
        except (RuntimeError, OSError) as error:
            if not is_out_of_shared_memory(error):
                raise
            return _Failure(RuntimeError, SHARED_MEMORY)

    def name(self, item: int) -> str:
        return name_of(self.dataset, item)


def _unchanged(batch: Any) -> Any:
    return batch
