"""The processes that make batches: what they listen to, which item each of them is at, and what is said when one is lost.

A worker is lost when it ends, or when it has been at one item for too long while the training process waited. Both are found
out where a batch is waited for, never in the middle of a step or of a checkpoint, as torch would raise it.
"""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pickle import PicklingError
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data._utils.signal_handling import _remove_worker_pids
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

StartMethod = Literal["fork", "spawn", "forkserver"]

MAX_WAIT_S = 300.0  # chosen: a network disk may be away for minutes and come back
LOOK_S = 1.0  # between two looks at the workers while no batch comes
GRACE_S = 5.0  # for a killed worker to be gone
ORPHANED_S = 5.0  # between a worker's looks at whether the training process is there
NO_ITEM = -1

MEMORY = "the machine most often ran out of memory (fewer --num-workers help)"
SHARED_MEMORY = (
    "shared memory (/dev/shm) is full: give the container more (docker run --shm-size=8g, or --ipc=host), "
    "or use fewer --num-workers or a smaller --batch-size"
)
NO_GUARD = (
    'a script that starts the run must do so below `if __name__ == "__main__":`, since worker processes import it; '
    "what else went wrong stands above"
)


class WorkerLostError(RuntimeError):
    """A worker process ended, or stands still."""


class Place(NamedTuple):
    """Where a worker is: how many items it began, and the number of the one that it is at, or NO_ITEM."""

    begun: int
    item: int


class Board:
    """Where each worker says which item it is at, for the training process to read."""

    def __init__(self, num_workers: int):
        self._rows = torch.tensor([[0, NO_ITEM]]).repeat(max(num_workers, 1), 1).share_memory_()

    def at(self, item: int) -> None:
        """Say that this worker begins an item, or that it is at none; without effect in the training process."""
        worker = get_worker_info()
        if worker is not None:
            row = self._rows[worker.id]
            row[0] += item != NO_ITEM
            row[1] = item

    def places(self) -> list[Place]:
        return [Place(*row) for row in self._rows.tolist()]


class WatchedLoader(DataLoader[Any]):
    """torch's loader with workers that are watched.

    Args:
        board: what the data set notes its items on.
        name: a number to words that find the item: its file.
        max_wait_s: how long a worker may be at one item while a batch is waited for.
        options: of torch's loader.

    Raises:
        WorkerLostError: while iterating.
    """

    def __init__(self, dataset: Any, board: Board, name: Callable[[int], str], max_wait_s: float, options: dict[str, Any]):
        super().__init__(dataset, **options)
        self.board, self.name, self.max_wait_s = board, name, max_wait_s

    @property
    def start_method(self) -> str:
        context = self.multiprocessing_context or multiprocessing.get_context()
        return str(context.get_start_method())

    def close(self) -> None:
        """End the workers; a next pass starts new ones."""
        iterator, self._iterator = self._iterator, None
        if isinstance(iterator, _Workers):
            iterator.end()

    def _get_iterator(self) -> Any:
        if not self.num_workers:
            return super()._get_iterator()
        try:
            with garbage_stays_here():
                return _Workers(self)
        except (BrokenPipeError, EOFError):
            raise WorkerLostError(f"a data worker ended while it started: {NO_GUARD}") from None
        except (TypeError, AttributeError, PicklingError) as error:
            if self.start_method == "fork":
                raise
            fix = "keep lambdas, open files and classes defined inside functions out of it, or use num_workers=0"
            raise ValueError(f"the data set cannot be sent to a worker process ({self.start_method}): {error}; {fix}") from error


class _Workers(_MultiProcessingDataLoaderIter):
    """The workers of a loader, through all of its passes.

    Where a worker is stopped while torch fetches memory from it, torch waits on; the watchdog of a run ends that.
    """

    def __init__(self, loader: WatchedLoader):
        self._watched = loader
        self._stood_still: dict[int, tuple[Place, float]] = {}
        super().__init__(loader)
        self._forget_pids()

    def _forget_pids(self) -> None:
        """Or torch would raise, wherever the program is, for a worker that died; whose item nobody could say then."""
        _remove_worker_pids(id(self))
        self._worker_pids_set = False

    def end(self) -> None:
        workers = self._workers
        self._shutdown_workers()
        for worker in workers:
            if worker.is_alive():
                worker.kill()
            worker.join(GRACE_S)

    def _try_get_data(self, timeout: float = 0.0) -> tuple[bool, Any]:
        """All waiting of torch's loader goes through here; it calls again until a batch came."""
        look = min(LOOK_S, self._watched.max_wait_s / 4)
        self._raise_for_the_dead()
        try:
            came, made = super()._try_get_data(look)
        except (RuntimeError, OSError, EOFError):
            self._raise_for_the_dying()
            raise
        if not came:
            self._raise_for_the_still(look)
        return came, made

    def _raise_for_the_dead(self) -> None:
        for number, worker in enumerate(self._workers):
            if not worker.is_alive():
                raise WorkerLostError(f"{self._called(number)} {self._end_of(number, worker.exitcode)}")

    def _raise_for_the_dying(self) -> None:
        """What a worker sends breaks off a moment before it counts as dead."""
        end = time.monotonic() + GRACE_S
        while time.monotonic() < end:
            self._raise_for_the_dead()
            time.sleep(0.05)

    def _raise_for_the_still(self, waited_s: float) -> None:
        """Count the time of waiting, and not of a clock, which runs on where the whole program is stopped for a while."""
        owing = {task[0] for task in self._task_info.values() if len(task) == 1}
        for number, place in enumerate(self._watched.board.places()):
            before, still_s = self._stood_still.get(number, (place, 0.0))
            still_s = still_s + waited_s if place == before and (number in owing or place.item != NO_ITEM) else 0.0
            self._stood_still[number] = (place, still_s)
            if still_s >= self._watched.max_wait_s:
                called = self._called(number)
                self._workers[number].kill()
                raise WorkerLostError(
                    f"{called} has not moved for {still_s:g} s: a disk or server does not answer, or the file takes its decoder "
                    "or your code for ever; it was killed"
                )

    def _called(self, number: int) -> str:
        place = self._watched.board.places()[number]
        at = "between two batches" if place.item == NO_ITEM else f"at item {place.item}, {self._watched.name(place.item)},"
        return f"data worker {number} (process {self._workers[number].pid}) {at if place.begun else 'before its first item'}"

    def _end_of(self, number: int, status: int | None) -> str:
        if status is None or status >= 0:
            starting = self._watched.start_method != "fork" and not self._watched.board.places()[number].begun
            return f"ended with status {status}{f': {NO_GUARD}' if starting else ''}"
        name = signal.Signals(-status).name
        if name == "SIGKILL":
            return f"was killed ({name}): {MEMORY}"
        return f"died ({name}): {SHARED_MEMORY if name == 'SIGBUS' else 'the file, or the code that reads it, crashes its decoder'}"


@contextmanager
def garbage_stays_here() -> Iterator[None]:
    """Inside, a forked process does not collect what is garbage here already.

    It could be a process group or a writer of logs, whose end waits for threads that a forked process does not have. What is
    never looked at is not copied either.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def is_out_of_shared_memory(error: Exception) -> bool:
    """Whether torch could not get memory to send a batch in."""
    return "shared memory" in str(error) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)


def listen_to_trainer_only(worker: int) -> None:
    """Ctrl-C and a scheduler's signals reach every process; the training process alone decides, after the step it is in."""
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, args=(multiprocessing.parent_process(), os.getppid()), daemon=True).start()


def _end_when_told(trainer: Any, starter: int) -> None:
    """End when the training process says so, or is gone.

    Python ends leftover workers with the same SIGTERM and waits for them, so that the sender must be looked at.

    Args:
        starter: process that started this one: the trainer, or its fork server.
    """
    while os.getppid() == starter and trainer.is_alive():
        told = signal.sigtimedwait({signal.SIGTERM}, ORPHANED_S)
        if told is not None and told.si_pid == trainer.pid:
            break
    os._exit(0)
