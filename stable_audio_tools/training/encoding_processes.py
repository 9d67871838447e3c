"""The processes that share a pre-encoding: those of this machine, or those that torchrun or SLURM started, which need not meet."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from stable_audio_tools.data.latent_shards import missing_shards
from stable_audio_tools.training.pre_encode import PROGRESS_S, Job
from stable_audio_tools.training.stop_signals import StoppedBySignal, ending_on_signals

log = logging.getLogger(__name__)

POLL_S = 0.1
GRACE_S = 10.0  # for a process to end its own
RANKS = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))


@dataclass(frozen=True)
class Place:
    """Which of how many processes this one is, and which of its machine's."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> Place:
        """As torchrun or SLURM says, if one of them started this process."""
        for names in RANKS:
            if all(os.environ.get(name, "").isdigit() for name in names):
                return cls(*(int(os.environ[name]) for name in names))
        return cls()

    def device(self, kind: str) -> torch.device:
        """This process's own: `kind` is cpu or cuda."""
        return torch.device(kind if kind == "cpu" else f"{kind}:{self.local_rank % max(1, torch.cuda.device_count())}")


def encode(job: Job, kind: str, *, processes: int, batch_size: int, num_workers: int) -> None:
    """Make what is missing of a job that is prepared.

    Args:
        kind: of the devices, cpu or cuda.
        processes: of this machine; another number than 1 only where this process was started alone.

    Raises:
        ConfigError: the data cannot be read any more.
        RuntimeError: a process failed, whose message is in the log.
    """
    if processes > 1:
        _spawn(job, kind, processes, {"batch_size": batch_size, "num_workers": num_workers})
    else:
        place = Place.of_environment()
        job.encoder.part.to(place.device(kind))
        job.run(job.share(place.rank, place.world_size), batch_size=batch_size, num_workers=num_workers)


def _spawn(job: Job, kind: str, processes: int, options: dict[str, int]) -> None:
    from torch.multiprocessing import get_context, get_start_method

    context, workers_start = get_context("spawn"), get_start_method()
    shares = [job.share(rank, processes) for rank in range(processes)]
    started: list[Any] = []
    try:
        for rank, shards in enumerate(shares):
            started.append(context.Process(target=_work, args=(job, Place(rank, processes, rank), kind, shards, options, workers_start)))
            started[-1].start()
        _watch(job, started)
    finally:
        for process in started:
            if process.is_alive():
                process.terminate()
        for process in started:
            process.join(GRACE_S)
            if process.is_alive():  # what it was at is no file yet
                process.kill()
                process.join()


def _watch(job: Job, processes: list[Any]) -> None:
    """Wait for all, with a line of progress every few seconds; the first that fails ends the wait."""
    total = len(missing_shards(job.folder, job.details))
    begun = told = time.monotonic()
    while any(process.is_alive() for process in processes):
        if any(process.exitcode not in (None, 0) for process in processes):
            break
        time.sleep(POLL_S)
        if time.monotonic() - told > PROGRESS_S:
            told, left = time.monotonic(), len(missing_shards(job.folder, job.details))
            if not left:
                continue
            remaining = f", about {(told - begun) / (total - left) * left:.0f} s left" if left < total else ""
            log.info("%d of %d shards are there%s", job.details.shards - left, job.details.shards, remaining)
    failed = [(rank, process.exitcode) for rank, process in enumerate(processes) if process.exitcode not in (None, 0)]
    if failed:
        rank, status = failed[0]
        raise RuntimeError(f"process {rank} of {len(processes)} ended with status {status}; the same command goes on where it stopped")


def _work(job: Job, place: Place, kind: str, shards: list[int], options: dict[str, int], workers_start: str) -> None:
    """One process: its shards, then its end.

    Args:
        workers_start: how its own workers start: as those of any loader, not as it did itself.
    """
    torch.multiprocessing.set_start_method(workers_start, force=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_num_threads(max(1, torch.get_num_threads() // place.world_size))
    try:
        with ending_on_signals():
            job.encoder.part.to(place.device(kind))
            job.run(shards, **options)
    except StoppedBySignal:
        raise
    except Exception as error:
        log.error("process %d: %s: %s", place.rank, type(error).__name__, error)
        raise SystemExit(1) from error
