"""What SIGTERM, SIGINT and SIGUSR1 do to a program that trains, outside the training loop; inside it is `checkpoints.SignalGuard`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

EXIT_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


def save_signals() -> tuple[signal.Signals, ...]:
    """What asks for a checkpoint: SIGUSR1, where there is one."""
    return (signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()


class StoppedBySignal(SystemExit):
    """The program was told to end where it had nothing to save. `status` is its exit status, `name` the signal's."""

    def __init__(self, number: int):
        self.status, self.name = EXIT_STATUS[signal.Signals(number)], signal.Signals(number).name
        super().__init__(self.status)


class Interrupted(Exception):
    """Something that takes long was given up, since training is to end."""


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGINT raise `StoppedBySignal` wherever the program is, until training takes over; SIGUSR1 waits until then.

    It is held back and not handled, since processes that are started meanwhile, as loggers do, inherit that and not a handler:
    the signal, which SLURM sends to all processes of a job, would end them.
    """
    before = handle_signals({**dict.fromkeys(EXIT_STATUS, _end), **dict.fromkeys(save_signals(), signal.SIG_IGN)})
    _hold_save_signals(True)
    try:
        yield
    finally:
        handle_signals(dict.fromkeys(save_signals(), signal.SIG_IGN))  # forgets one that waits
        _hold_save_signals(False)
        handle_signals(before)


def handle_signals(handlers: Mapping[signal.Signals, Any]) -> dict[signal.Signals, Any]:
    """Give signals other handlers; returns those before. Nothing outside the main thread, which alone may say what signals do."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


def take_save_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    """Have `handler` called for SIGUSR1, also for one that came since the program began."""
    handle_signals(dict.fromkeys(save_signals(), handler))
    _hold_save_signals(False)


def _hold_save_signals(hold: bool) -> None:
    """Let SIGUSR1 wait, or come. Linux keeps one that waits even while it is ignored; elsewhere it may be lost."""
    if hasattr(signal, "pthread_sigmask") and threading.current_thread() is threading.main_thread():
        signal.pthread_sigmask(signal.SIG_BLOCK if hold else signal.SIG_UNBLOCK, save_signals())


def _end(number: int, frame: FrameType | None) -> None:
    raise StoppedBySignal(number)


def end_at_once(status: int) -> NoReturn:
    """End this process wherever it is, and its data workers, one of which may be what hangs."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(status)


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
