"""A step as a list of changes, and the fold that says how high it went.

Ranks of one stage do the same things at the same time; what differs is which gradients a ZeRO
partition owns. So a stage has one timeline, and a change may be restricted to a range of
partition indices.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.layout.ranks import PartitionIndex
from planner.memory.terms import Term

Group = Literal["dense", "expert"]
"""Which ZeRO group an owner index counts in: ``dp * sp`` ranks, or their ``1/ep`` for experts."""

Ints = NDArray[np.int64]

Owned = tuple[int, bool, int, int]
"""A change that not everyone sees: its place, whether experts' index counts, and the range."""

EVERYONE = (0, 2**31 - 1)

_MATRIX_CELLS = 2**20
"""Bounds the memory of `Timeline.peaks`: ranks are taken in portions."""


_NOBODY = PartitionIndex(-1, -1)

_TERMS = tuple(Term)


class PhasePeak(NamedTuple):
    """The highest point of one phase, and where the phase ended."""

    phase: str
    end_bytes: int
    """Allocated when the phase is over."""
    peak_bytes: int
    terms: dict[Term, int]
    """At the peak; they add up to ``peak_bytes``."""
    end_terms: dict[Term, int]
    """When the phase is over; they add up to ``end_bytes``."""


class _Span(NamedTuple):
    """One stretch of a phase."""

    start: int
    """Changes before it."""
    end: int
    peak_bytes: int


class _Booked(NamedTuple):
    """Changes that may be booked again."""

    terms: Sequence[int]
    deltas: Sequence[int]
    owners: Sequence[Owned]
    """As `Timeline` has them, places counted from the first of the changes."""


@dataclass(slots=True)
class Timeline:
    """Changes in order, each with its term; a phase starts where `phase` is called."""

    _phases: list[tuple[str, int]] = field(default_factory=list)
    _terms: list[int] = field(default_factory=list)
    _deltas: list[int] = field(default_factory=list)
    _owners: list[Owned] = field(default_factory=list)
    _booked: dict[Hashable, _Booked] = field(default_factory=dict)

    def phase(self, name: str) -> None:
        """Start a phase; one that was there before goes on as the same phase."""
        self._phases.append((name, len(self._terms)))

    def add(
        self,
        term: Term,
        delta: int,
        owners: tuple[int, int] = EVERYONE,
        group: Group = "dense",
    ) -> None:
        """Allocate bytes (free them, below zero) on the ranks whose index is in the range."""
        if owners is not EVERYONE:
            self._owners.append((len(self._terms), group == "expert", *owners))
        self._terms.append(term)
        self._deltas.append(delta)

    def extend(self, terms: Sequence[int], deltas: Sequence[int]) -> None:
        """Add many changes that everyone sees, in order."""
        self._terms.extend(terms)
        self._deltas.extend(deltas)

    def play(self, moves: Iterable[tuple[int, int]]) -> None:
        """Add changes, each a term and a size, that everyone sees, in order."""
        for term, delta in moves:
            self.add(Term(term), delta)

    def spike(
        self,
        term: Term,
        size: int,
        owners: tuple[int, int] = EVERYONE,
        group: Group = "dense",
    ) -> None:
        """Allocate and free at once."""
        self.add(term, size, owners, group)
        self.add(term, -size, owners, group)

    def once(self, key: Hashable, book: Callable[[], None]) -> None:
        """Let ``book`` add its changes; for a key that was there before, add the same again.

        ``book`` starts no phase. With the key None it is called in any case.
        """
        known = self._booked.get(key)
        if known is not None:
            start = len(self._terms)
            self._owners.extend(_moved(known.owners, start))
            self.extend(known.terms, known.deltas)
            return
        start, first = len(self._terms), len(self._owners)
        book()
        if key is not None:
            owners = _moved(self._owners[first:], -start)
            terms, deltas = self._terms[start:], self._deltas[start:]
            if not owners:
                terms, deltas = condensed(terms, deltas)
            self._booked[key] = _Booked(terms, deltas, owners)

    def fold(self, index: PartitionIndex) -> tuple[PhasePeak, ...]:
        """What the rank at ``index`` holds, phase by phase, in the order they first start."""
        terms, deltas = np.asarray(self._terms, dtype=np.int64), self._deltas_of(index)
        totals = np.concatenate([[0], np.cumsum(deltas)])
        starts = [start for _, start in self._phases]
        ends = [*starts[1:], len(terms)]
        tops = np.maximum(np.maximum.reduceat(totals, starts), totals[ends])
        spans: dict[str, list[_Span]] = {}
        for (name, start), end, top in zip(self._phases, ends, tops.tolist(), strict=True):
            spans.setdefault(name, []).append(_Span(start, end, top))
        return tuple(_peak(name, parts, terms, deltas, totals) for name, parts in spans.items())

    def peaks(self, indices: Sequence[PartitionIndex]) -> Ints:
        """The highest point of the whole timeline for each of the ranks, in bytes.

        What is common to all is folded once: between two changes that not everyone sees, only the
        highest common total matters. So the cost per rank is that of the changes with owners.
        """
        totals = np.concatenate([[0], np.cumsum(self._deltas_of(_NOBODY))])
        if not self._owners:
            return np.full(len(indices), totals.max(), dtype=np.int64)
        places, expert, low, high = np.asarray(self._owners, dtype=np.int64).T
        tops = np.maximum.reduceat(totals, np.concatenate([[0], places + 1]))
        sizes = np.asarray(self._deltas, dtype=np.int64)[places]
        different, alike = _alike(np.asarray(indices), np.concatenate([low, high]))
        peaks = [
            _own_peaks(part, tops, sizes, (expert, low, high))
            for part in _portions(different, max(1, _MATRIX_CELLS // len(places)))
        ]
        found: Ints = np.concatenate(peaks)[alike]
        return found

    def _deltas_of(self, index: PartitionIndex) -> Ints:
        """The changes that the rank sees: those of other owners are zero."""
        deltas = np.asarray(self._deltas, dtype=np.int64)
        if self._owners:
            places, expert, low, high = np.asarray(self._owners, dtype=np.int64).T
            own = np.where(expert == 1, index.expert, index.dense)
            deltas[places[(own < low) | (own >= high)]] = 0
        return deltas


def _moved(owners: Sequence[Owned], by: int) -> list[Owned]:
    return [(place + by, expert, low, high) for place, expert, low, high in owners]


def condensed(terms: Sequence[int], deltas: Sequence[int]) -> tuple[list[int], list[int]]:
    """Fewer changes with the same highest point, terms and all, and the same end."""
    totals = list(accumulate(deltas, initial=0))
    top = totals.index(max(totals))
    up, down = _sums(terms[:top], deltas[:top]), _sums(terms[top:], deltas[top:])
    changes = [*falls_first(up), *falls_first(down)]
    return [term for term, _ in changes], [delta for _, delta in changes]


def _sums(terms: Sequence[int], deltas: Sequence[int]) -> dict[int, int]:
    sums: dict[int, int] = {}
    for term, delta in zip(terms, deltas, strict=True):
        sums[term] = sums.get(term, 0) + delta
    return sums


def falls_first(changes: dict[int, int]) -> list[tuple[int, int]]:
    """No point on the way is higher than both its ends."""
    return sorted((change for change in changes.items() if change[1]), key=lambda item: item[1])


def _alike(indices: Ints, bounds: Ints) -> tuple[Ints, Ints]:
    """One of all indices that no bound tells apart, and for each index which one it is."""
    sides = np.searchsorted(np.unique(bounds), indices, side="right")
    _, first, alike = np.unique(sides, axis=0, return_index=True, return_inverse=True)
    return indices[first], alike.reshape(-1)


def _portions(indices: Ints, size: int) -> Iterator[Ints]:
    """The indices in pieces of at most ``size``."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _own_peaks(indices: Ints, tops: Ints, sizes: Ints, owners: tuple[Ints, Ints, Ints]) -> Ints:
    """Peaks of the ranks at ``indices`` (ranks, 2): common tops raised by what each owns."""
    expert, low, high = owners
    own = np.where(expert == 1, indices[:, 1:], indices[:, :1])
    held = np.cumsum(np.where((own >= low) & (own < high), sizes, 0), axis=1)
    peaks: Ints = np.maximum(tops[0], (tops[1:] + held).max(axis=1))
    return peaks


def _peak(name: str, spans: list[_Span], terms: Ints, deltas: Ints, totals: Ints) -> PhasePeak:
    """The highest total in the spans, what is alive there and at the last end.

    Of equal totals the one at the start of a span counts, where nothing is under way, else the
    first.
    """
    start, end, peak_bytes = max(spans, key=lambda span: span.peak_bytes)
    starts = (span.start for span in spans if totals[span.start] == peak_bytes)
    place = next(starts, start + int(np.argmax(totals[start : end + 1])))
    last = spans[-1].end
    return PhasePeak(
        phase=name,
        end_bytes=int(totals[last]),
        peak_bytes=peak_bytes,
        terms=_alive(place, terms, deltas),
        end_terms=_alive(last, terms, deltas),
    )


def _alive(place: int, terms: Ints, deltas: Ints) -> dict[Term, int]:
    """Bytes of each term after the first ``place`` changes; terms with none are left out."""
    sums = np.zeros(len(_TERMS), dtype=np.int64)
    np.add.at(sums, terms[:place], deltas[:place])
    return {term: size for term, size in zip(_TERMS, sums.tolist(), strict=True) if size}
