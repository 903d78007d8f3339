"""What a rehearsal allocated and freed, in order, with the streams."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from planner.validate.books import Books, Entry


class Kind(IntEnum):
    """What happened."""

    ALLOCATE = 0
    FREE = 1
    USE = 2
    """A stream was told to work with a tensor that was made on another."""
    SYNCHRONIZE = 3
    EMPTY_CACHE = 4
    BEGIN = 5
    """A phase; its number is that of its reading."""
    END = 6


class Move(NamedTuple):
    """One happening."""

    kind: Kind
    number: int
    """Of the tensor's memory, or of the phase."""
    size_bytes: int = 0
    stream: int = 0
    """-1, of a synchronisation: all."""


@dataclass(slots=True, kw_only=True)
class Trace:
    """A `Recorder` of the books, and a `Listener` of the device."""

    stream: Callable[[], int]
    """Where the host gives work to at the moment."""
    moves: list[Move] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    """Of every allocation, by its number: who it belongs to is known when all is over."""
    phases: list[str] = field(default_factory=list)
    books: Books | None = None
    _numbers: dict[Entry, int] = field(default_factory=dict)

    def resized(self, entry: Entry, before: int, after: int) -> None:
        """PyTorch allocates anew, and frees what was there (aten/src/ATen/native/cuda/Resize.cpp).

        Source: resize_bytes_cuda.
        """
        old = self._numbers.pop(entry, None) if before else None
        if after:
            number = self._numbers[entry] = len(self.entries)
            self.entries.append(entry)
            self.moves.append(Move(Kind.ALLOCATE, number, after, self.stream()))
        if old is not None:
            self.moves.append(Move(Kind.FREE, old))

    def used(self, key: int, stream: int) -> None:
        """``tensor.record_stream(stream)`` of a tensor whose storage has this key in the books."""
        entry = None if self.books is None else self.books.find(key)
        number = None if entry is None else self._numbers.get(entry)
        if number is not None:
            self.moves.append(Move(Kind.USE, number, stream=stream))

    def synchronized(self, stream: int | None) -> None:
        """The host has waited for a stream, or for all."""
        self.moves.append(Move(Kind.SYNCHRONIZE, 0, stream=-1 if stream is None else stream))

    def emptied(self) -> None:
        """``empty_cache()``."""
        self.moves.append(Move(Kind.EMPTY_CACHE, 0))

    def begins(self, name: str) -> None:
        """A phase begins."""
        self.moves.append(Move(Kind.BEGIN, len(self.phases)))
        self.phases.append(name)

    def ends(self) -> None:
        """A phase is over."""
        self.moves.append(Move(Kind.END, len(self.phases) - 1))

    def label(self, number: int) -> str:
        """What an allocation was."""
        return self.entries[number].label
