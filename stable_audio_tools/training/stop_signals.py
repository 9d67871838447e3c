"""What SIGTERM, SIGINT and SIGUSR1 do to a program that trains, outside the training loop; inside it is `checkpoints.SignalGuard`."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


def save_signals() -> tuple[signal.Signals, ...]:
    """What asks for a checkpoint: SIGUSR1, where there is one, but under SLURM, where Lightning requeues the job on it."""
    return (signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") and "SLURM_JOB_ID" not in os.environ else ()


class StoppedBySignal(SystemExit):
    """The program was told to end where it had nothing to save. `code` is its exit status."""

    def __init__(self, number: int):
        super().__init__(EXIT_STATUS[signal.Signals(number)])
        self.name = signal.Signals(number).name


class Interrupted(Exception):
    """Something that takes long was given up, since training is to end."""


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGINT raise `StoppedBySignal` wherever the program is, until training takes over; SIGUSR1 has nothing to save.

    Without effect outside the main thread, which alone may say what signals do.
    """
    with handling({**dict.fromkeys(EXIT_STATUS, _end), **dict.fromkeys(save_signals(), signal.SIG_IGN)}):
        yield


def _end(number: int, frame: FrameType | None) -> None:
    raise StoppedBySignal(number)


@contextmanager
def handling(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Inside, these signals have these handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interruptible(asked: Callable[[], bool]) -> Iterator[None]:
    """Inside, once `asked()`, the next call of any network raises `Interrupted`; so whatever samples ends within one of its steps."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    def check(module: Any, inputs: Any) -> None:
        if asked():
            raise Interrupted

    handle = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()
