"""A trace, replayed through PyTorch's caching allocator: what it would have reserved."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from pathlib import Path

from planner.memory.allocator.caching import CachingAllocator
from planner.memory.allocator.driver import Watcher
from planner.memory.allocator.pressure import OutOfMemoryError
from planner.memory.allocator.settings import DEFAULTS, Settings
from planner.rehearse.trace import Kind, Move, Trace
from planner.validate.job import RankResult, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Modelled:
    """The allocator that is modelled."""

    settings: Settings = DEFAULTS
    capacity_bytes: int | None = None
    """What the device has for it; None: as much as it wants."""
    device_bytes: int | None = None
    """What the device has in all; None: the same."""
    snapshots: tuple[Path, ...] = ()
    """Where what it did goes, for PyTorch's memory viewer."""
    many: bool = False
    """Each rank has files of its own, with its number in the name."""

    def allocator(self, *, prompt: bool = True, watcher: Watcher | None = None) -> CachingAllocator:
        """An empty one."""
        return CachingAllocator(
            self.settings,
            capacity_bytes=self.capacity_bytes,
            device_bytes=self.device_bytes,
            prompt=prompt,
            watcher=watcher,
        )

    def snapshots_of(self, rank: int) -> tuple[Path, ...]:
        """The files of a rank."""
        return tuple(of_rank(path, rank, many=self.many) for path in self.snapshots)


def of_rank(path: Path, rank: int, *, many: bool) -> Path:
    """The file of a rank, if there are many ranks."""
    return path.with_stem(f"{path.stem}-rank{rank}") if many else path


@dataclass(slots=True)
class Replayed:
    """How the allocator fared."""

    peak_reserved_bytes: list[int] = field(default_factory=list)
    """The most in each phase that came to its end; what is reserved at its start counts."""
    refused: OutOfMemoryError | None = None
    """The allocation at which the device was full; its key is the number in the trace."""


Before = Callable[[Kind, int], None]


def replay(
    trace: Trace, allocator: CachingAllocator, *, before: Before = lambda *_: None
) -> Replayed:
    """Do what the trace says, up to its end or to an allocation that is refused.

    ``before`` is called with the kind and the number of every move, before it is made.
    """
    replayed = Replayed()
    for move in trace.moves:
        before(move.kind, move.number)
        try:
            _do(move, allocator, replayed)
        except OutOfMemoryError as error:
            replayed.refused = error
            return replayed
    return replayed


def with_reserved(result: RankResult, trace: Trace, modelled: Modelled) -> RankResult:
    """The result of a rank with what the allocator would have reserved in every phase."""
    replayed = replay(trace, modelled.allocator())
    lagging = replay(trace, modelled.allocator(prompt=False))
    peaks = zip(
        result.readings,
        chain(replayed.peak_reserved_bytes, repeat(None)),
        chain(lagging.peak_reserved_bytes, repeat(None)),
        strict=False,
    )
    return replace(
        result,
        readings=tuple(
            replace(reading, reserved_bytes=low, reserved_high_bytes=high)
            for reading, low, high in peaks
        ),
        refused=_refused(result, trace, replayed, modelled),
    )


def _refused(
    result: RankResult, trace: Trace, replayed: Replayed, modelled: Modelled
) -> Refused | None:
    error = replayed.refused
    if error is None:
        return None
    reading = result.readings[min(len(replayed.peak_reserved_bytes), len(result.readings) - 1)]
    return Refused(
        step=reading.step,
        phase=reading.phase,
        label=trace.label(int(str(error.key))),
        wanted_bytes=error.wanted_bytes,
        allocated_bytes=error.allocated_bytes,
        reserved_bytes=error.reserved_bytes,
        capacity_bytes=modelled.capacity_bytes,
    )


def _do(move: Move, allocator: CachingAllocator, replayed: Replayed) -> None:
    kind, number, size, stream = move
    if kind == Kind.ALLOCATE:
        allocator.allocate(number, size, stream)
    elif kind == Kind.FREE:
        allocator.free(number)
    elif kind == Kind.USE:
        allocator.record_stream(number, stream)
    elif kind == Kind.SYNCHRONIZE:
        allocator.synchronize(None if stream < 0 else stream)
    elif kind == Kind.EMPTY_CACHE:
        allocator.empty_cache()
    elif kind == Kind.BEGIN:
        allocator.reset_peaks()
    else:
        replayed.peak_reserved_bytes.append(allocator.peak_reserved_bytes)
