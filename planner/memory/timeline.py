"""A step as a list of changes, and the fold that says how high it went.

Ranks of one stage do the same things at the same time; what differs is which gradients a ZeRO
partition owns. So a stage has one timeline, and a change may be restricted to a range of
partition indices.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
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
        terms = np.asarray(self._terms, dtype=np.int64)
        deltas = self._deltas_of(index)
        totals = np.cumsum(deltas)
        spans: dict[str, list[tuple[int, int]]] = {}
        ends = [start for _, start in self._phases[1:]] + [len(terms)]
        for (name, start), end in zip(self._phases, ends, strict=True):
            spans.setdefault(name, []).append((start, end))
        return tuple(_peak(name, parts, terms, deltas, totals) for name, parts in spans.items())

    def peaks(self, indices: Sequence[PartitionIndex]) -> Ints:
        """The highest point of the whole timeline for each of the ranks, in bytes.

        What is common to all is folded once: between two changes that not everyone sees, only the
        highest common total matters. So the cost per rank is that of the changes with owners.
        """
        common = self._deltas_of(_NOBODY)
        totals = np.concatenate([[0], np.cumsum(common)])
        if not self._owners:
            return np.full(len(indices), totals.max(), dtype=np.int64)
        places, expert, low, high = np.asarray(self._owners, dtype=np.int64).T
        tops = np.maximum.reduceat(totals, np.concatenate([[0], places + 1]))
        sizes = np.asarray(self._deltas, dtype=np.int64)[places]
        return np.concatenate(
            [
                _own_peaks(np.asarray(part), tops, sizes, (expert, low, high))
                for part in _portions(indices, max(1, _MATRIX_CELLS // len(places)))
            ]
        )

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


def _portions(indices: Sequence[PartitionIndex], size: int) -> Iterator[Sequence[PartitionIndex]]:
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


def _peak(
    name: str, spans: list[tuple[int, int]], terms: Ints, deltas: Ints, totals: Ints
) -> PhasePeak:
    """The highest total in the spans, what is alive there, and what is alive at the last end."""
    tops = [(_before(start, totals), start) for start, _ in spans]
    for start, end in spans:
        if end > start:
            top = start + int(np.argmax(totals[start:end]))
            tops.append((int(totals[top]), top + 1))
    peak_bytes, place = max(tops, key=lambda top: top[0])
    end = spans[-1][1]
    return PhasePeak(
        phase=name,
        end_bytes=_before(end, totals),
        peak_bytes=peak_bytes,
        terms=_alive(place, terms, deltas),
        end_terms=_alive(end, terms, deltas),
    )


def _before(place: int, totals: Ints) -> int:
    """Total after the first ``place`` changes."""
    return int(totals[place - 1]) if place else 0


def _alive(place: int, terms: Ints, deltas: Ints) -> dict[Term, int]:
    """Bytes of each term after the first ``place`` changes; terms with none are left out."""
    sums = np.zeros(len(Term), dtype=np.int64)
    np.add.at(sums, terms[:place], deltas[:place])
    return {term: int(sums[term]) for term in Term if sums[term]}
