"""Streams of the stand-in: work on them is done at once, but tensors remember where they were made.

PyTorch's caching allocator keeps the blocks of every stream apart, so a replay has to know them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

_NUMBERS = count()


class Listener(Protocol):
    """Hears what the host tells the device's caching allocator."""

    def synchronized(self, stream: int | None) -> None:
        """The host has waited for a stream, or for all."""

    def emptied(self) -> None:
        """What is cached is to be returned."""


class Stream:
    """Its number tells it from the others; the default one's is 0."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.number = next(_NUMBERS)

    def wait_stream(self, _: Any) -> None: ...

    def wait_event(self, _: Any) -> None: ...

    def synchronize(self) -> None:
        if Work.listener is not None:
            Work.listener.synchronized(self.number)

    def record_event(self, event: Any = None) -> Any:
        return event

    def query(self) -> bool:
        return True


DEFAULT = Stream()


class Event:
    """Has happened as soon as it is recorded."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, _: Any = None) -> None: ...

    def wait(self, _: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Any) -> float:
        return 1.0


class Work:
    """Where the host gives work to."""

    stream = DEFAULT
    listener: Listener | None = None


@contextmanager
def on(stream: Stream) -> Iterator[None]:
    """Inside the ``with``, work goes to the stream."""
    before, Work.stream = Work.stream, stream
    try:
        yield
    finally:
        Work.stream = before
