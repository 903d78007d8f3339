"""Every byte of a real run on the CPU, booked as the operations allocate it.

A dispatch mode sees each operation's results, those of autograd and of the framework included. A
storage is booked at first sight, re-booked when it is resized, and struck off when it dies.
Buffers that a communication backend allocates for itself (gloo's) are not seen.
"""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Reading(NamedTuple):
    """What one phase allocated, in bytes."""

    phase: str
    start_bytes: int
    end_bytes: int
    peak_bytes: int


@dataclass(slots=True)
class _Entry:
    size: int


@dataclass(slots=True)
class Books:
    """Bytes of all live storages, now and at the highest point since `reset_peak`."""

    now_bytes: int = 0
    peak_bytes: int = 0
    readings: list[Reading] = field(default_factory=list)
    _live: dict[int, _Entry] = field(default_factory=dict)

    def book(self, storage: torch.UntypedStorage) -> None:
        """Count a storage at its present size."""
        key, size = storage._cdata, storage.nbytes()
        entry = self._live.get(key)
        if entry is None:
            entry = self._live[key] = _Entry(0)
            weakref.finalize(storage, self._strike, key, entry)
        self.now_bytes += size - entry.size
        entry.size = size
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)

    def _strike(self, key: int, entry: _Entry) -> None:
        self.now_bytes -= entry.size
        entry.size = 0
        if self._live.get(key) is entry:
            del self._live[key]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Read the peak of what happens inside; garbage is collected before and after."""
        gc.collect()
        start = self.peak_bytes = self.now_bytes
        yield
        peak = self.peak_bytes
        gc.collect()
        self.readings.append(Reading(name, start, self.now_bytes, peak))


class Ledger(TorchDispatchMode):
    """Books every CPU storage that operations inside the ``with`` touch."""

    def __init__(self) -> None:
        super().__init__()
        self.books = Books()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation and book what it returns."""
        del types
        result = func(*args, **(kwargs or {}))
        for leaf in tree_iter(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                self.books.book(leaf.untyped_storage())
        return result
