"""Ctrl-C, SIGTERM and a closed terminal end a run in one way: by an exception in the main thread.

What is open is closed on its way up, and closing is not cut short by a second signal.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(KeyboardInterrupt):
    """The process was told to end, by which signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, every signal that ends a process raises `Ended`."""

    def end(number: int, _frame: Any) -> None:
        raise Ended(number)

    with _handlers(end):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, nothing is cut short."""
    with _handlers(signal.SIG_IGN):
        yield


@contextmanager
def daemons_start() -> Iterator[None]:
    """Daemons that start inside do not hear of a closed terminal: whoever started them ends them.

    Handlers that whoever starts them leaves behind are put away.
    """
    with _handlers(None):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what is ignored is so in children, too
        yield


@contextmanager
def _handlers(handler: Any) -> Iterator[None]:
    """Another handler, or with None the same, and afterwards those of before.

    Only the main thread has handlers; elsewhere nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        if handler is not None:
            for number in ENDING:
                signal.signal(number, handler)
        yield
    finally:
        for number, each in before.items():
            signal.signal(number, each)
