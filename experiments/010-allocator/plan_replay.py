"""The plan's own bookings, replayed through the allocator, as an estimate of reserved memory.

    python experiments/010-allocator/plan_replay.py

For every published run that tells reserved memory and that the planner plans: the estimate as it
is, and the bookings of the planned rank replayed. A booking is taken for one tensor, and what is
freed for the youngest of its term that is as large, else for parts of the youngest. Two minutes;
no torch, no GPU.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from planner.accuracy.entries import Entry, read_entries
from planner.accuracy.predict import Sizes, predict
from planner.accuracy.translate import translate
from planner.errors import PlannerError
from planner.layout.ranks import PartitionIndex
from planner.memory.allocator.caching import CachingAllocator
from planner.memory.timeline import PhasePeak, Timeline

PUBLISHED = Path(__file__).parents[1] / "004-published" / "measurements.yaml"


class Row(NamedTuple):
    """One run, in bytes."""

    entry: Entry
    measured: int
    estimate: int
    replayed: int


class Replayer:
    """Stands in for `Timeline.fold`: the plans need not know that they are replayed."""

    def __init__(self) -> None:
        self.reserved: dict[tuple[PhasePeak, ...], int] = {}
        self._fold = Timeline.fold

    def fold(self, timeline: Timeline, index: PartitionIndex) -> tuple[PhasePeak, ...]:
        """Fold as ever, and remember what the allocator would reserve."""
        phases = self._fold(timeline, index)
        deltas = timeline._deltas_of(index)  # noqa: SLF001 - no plan needs them
        told = _key(phases)
        self.reserved[told] = reserved_bytes(timeline._terms, deltas)  # noqa: SLF001
        return phases

    def of(self, sizes: Sizes) -> int | None:
        """What was remembered of the planned rank, whole or up to its first step."""
        told = _key(sizes.phases)
        return next((r for key, r in self.reserved.items() if key[: len(told)] == told), None)


def _key(phases: Sequence[PhasePeak]) -> tuple[PhasePeak, ...]:
    return tuple((phase.phase, phase.peak_bytes) for phase in phases)  # type: ignore[misc]


def reserved_bytes(terms: Sequence[int], deltas: Sequence[int]) -> int:
    """The most that the allocator reserves."""
    allocator = CachingAllocator()
    live: dict[int, list[tuple[int, int]]] = {}
    for number, (term, delta) in enumerate(zip(terms, deltas, strict=True)):
        held = live.setdefault(term, [])
        if delta > 0:
            allocator.allocate(number, delta)
            held.append((number, delta))
        elif delta < 0:
            _free(allocator, held, -delta, -number)
    return allocator.peak_reserved_bytes


def _free(
    allocator: CachingAllocator, held: list[tuple[int, int]], wanted: int, number: int
) -> None:
    """The youngest of that size, else the youngest ones, the last in part."""
    for place in reversed(range(len(held))):
        if held[place][1] == wanted:
            allocator.free(held.pop(place)[0])
            return
    while wanted > 0 and held:
        key, size = held.pop()
        allocator.free(key)
        if size > wanted:
            allocator.allocate(number, size - wanted)
            held.append((number, size - wanted))
        wanted -= size


def rows() -> Iterator[Row]:
    """Every run that can be compared."""
    replayer = Replayer()
    fold = replayer.fold
    Timeline.fold = lambda timeline, index: fold(timeline, index)  # type: ignore[method-assign]  # noqa: PLW0108 - a method of timelines
    for entry in read_entries(PUBLISHED):
        told = [m for m in (entry.measured, *entry.further) if m and m.quantity == "max_reserved"]
        if not told or entry.toy:
            continue
        replayer.reserved.clear()
        try:
            sizes = predict(translate(entry), num_iterations=entry.num_iterations)
        except (PlannerError, LookupError, ValueError, TypeError):
            continue
        replayed = replayer.of(sizes)
        if replayed is not None:
            yield Row(entry, told[0].size_bytes, sizes.beyond.reserved_bytes, replayed)


def main() -> None:
    """Print medians of the errors, by what is known of a run, and by framework."""
    found = list(rows())
    kinds = {"all": found, "grade A": [row for row in found if row.entry.completeness == "A"]}
    for row in kinds["grade A"]:
        kinds.setdefault(f"grade A, {row.entry.framework}", []).append(row)
    print(f"{'':30} runs  estimate: median, signed   replayed: median, signed")
    for name, chosen in kinds.items():
        errors = [
            [getattr(row, kind) / row.measured - 1 for row in chosen]
            for kind in ("estimate", "replayed")
        ]
        told = "   ".join(f"{median(map(abs, e)):18.1%} {median(e):+7.1%}" for e in errors)
        print(f"{name:30} {len(chosen):4}  {told}")


if __name__ == "__main__":
    main()
