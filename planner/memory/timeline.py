"""A step as a list of changes, and the fold that says how high it went.

Ranks of one stage do the same things at the same time; what differs is which gradients a ZeRO
partition owns. So a stage has one timeline, and a change may be restricted to a range of
partition indices.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise, repeat
from typing import Literal, NamedTuple

from planner.layout.ranks import PartitionIndex
from planner.memory.terms import Term

Group = Literal["dense", "expert"]
"""Which ZeRO group an owner index counts in: ``dp * sp`` ranks, or their ``1/ep`` for experts."""

Owned = tuple[int, bool, int, int]
"""A change that not everyone sees: its place, whether experts' index counts, and the range."""

_Step = tuple[bool, int, int, int]
"""The same with its delta in the place of its place, which is last."""

EVERYONE = (0, 2**31 - 1)

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


class _Own(NamedTuple):
    """What one rank sees of a stretch."""

    top_bytes: int
    """The highest point, counted from the start."""
    net_bytes: int
    """What changes that not everyone sees leave at the end."""


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
        deltas = self._deltas_of(index)
        totals = list(accumulate(deltas, initial=0))
        ends = [start for _, start in self._phases[1:]] + [len(deltas)]
        spans: dict[str, list[_Span]] = {}
        for (name, start), end in zip(self._phases, ends, strict=True):
            spans.setdefault(name, []).append(_Span(start, end, max(totals[start : end + 1])))
        places = {name: (_top(parts, totals), parts[-1].end) for name, parts in spans.items()}
        alive = _alive({at for both in places.values() for at in both}, self._terms, deltas)
        return tuple(
            PhasePeak(name, totals[end], totals[top], alive[top], alive[end])
            for name, (top, end) in places.items()
        )

    def peaks(self, indices: Sequence[PartitionIndex]) -> list[int]:
        """The highest point of the whole timeline for each of the ranks, in bytes.

        What everyone sees is folded once. Only stretches with changes that not everyone sees are
        looked at for each rank, and equal ones once, in whatever timeline they are.
        """
        ranks = tuple(sorted(set(indices)))
        held, highest = [0] * len(ranks), [0] * len(ranks)
        total = top = 0  # since the last stretch that ranks see differently
        for totals, steps, tops in self._stretches():
            if steps:
                own = _own(ranks, steps, tops)
                highest = [
                    max(high, now + top, now + total + each.top_bytes)
                    for high, now, each in zip(highest, held, own, strict=True)
                ]
                held = [now + total + each.net_bytes for now, each in zip(held, own, strict=True)]
                total = top = totals[-1]
            else:
                top = max(top, total + max(totals))
                total += totals[-1]
        peaks = (max(high, now + top) for high, now in zip(highest, held, strict=True))
        found = dict(zip(ranks, peaks, strict=True))
        return [found[index] for index in indices]

    def _stretches(self) -> Iterator[tuple[list[int], tuple[_Step, ...], tuple[int, ...]]]:
        """From phase to phase: totals of what everyone sees, counted from the start.

        Then what not everyone sees, and the highest total before, between and after that.
        """
        common = self._deltas_of(_NOBODY)
        starts = [start for _, start in self._phases]
        seen = 0
        for start, end in pairwise([0, *starts, len(common)]):
            first = seen
            while seen < len(self._owners) and self._owners[seen][0] < end:
                seen += 1
            totals = list(accumulate(common[start:end], initial=0))
            if first == seen:
                yield totals, (), ()
                continue
            owners = self._owners[first:seen]
            steps = tuple(
                (expert, low, high, self._deltas[place]) for place, expert, low, high in owners
            )
            bounds = [0, *(place + 1 - start for place, *_ in owners), len(totals)]
            yield totals, steps, tuple(max(totals[low:high]) for low, high in pairwise(bounds))

    def _deltas_of(self, index: PartitionIndex) -> list[int]:
        """The changes that the rank sees: those of other owners are zero."""
        deltas = self._deltas.copy()
        for place, expert, low, high in self._owners:
            if not low <= index[expert] < high:
                deltas[place] = 0
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


@lru_cache(maxsize=1024)
def _own(
    ranks: tuple[PartitionIndex, ...], steps: tuple[_Step, ...], tops: tuple[int, ...]
) -> tuple[_Own, ...]:
    """What each of the ranks, which ascend, sees of a stretch.

    ``tops``: the highest of what everyone sees before the first step, and after each one.
    """
    return tuple(_halved(ranks, steps, tops, 0))


def _halved(
    ranks: Sequence[PartitionIndex], steps: Sequence[_Step], tops: Sequence[int], held: int
) -> Iterator[_Own]:
    """Halve the ranks until no step tells them apart; ``held``: by the steps left out."""
    steps, tops, net = _merged(ranks, steps, tops)
    held += net
    if not steps:
        yield from repeat(_Own(tops[0], held), len(ranks))
        return
    middle = len(ranks) // 2
    yield from _halved(ranks[:middle], steps, tops, held)
    yield from _halved(ranks[middle:], steps, tops, held)


def _merged(
    ranks: Sequence[PartitionIndex], steps: Sequence[_Step], tops: Sequence[int]
) -> tuple[list[_Step], list[int], int]:
    """The same for these ranks, without the steps that all of them see, or none; and their sum."""
    lowest = [min(places) for places in zip(*ranks, strict=True)]
    highest = [max(places) for places in zip(*ranks, strict=True)]
    own: list[_Step] = []
    own_tops: list[int] = []
    held, last = 0, tops[0]
    for step, top in zip(steps, tops[1:], strict=True):
        expert, low, high, delta = step
        least, most = lowest[expert], highest[expert]
        if low <= least and most < high:
            held += delta
        elif low <= most and least < high:
            own.append(step)
            own_tops.append(last)
            last = held + top
            continue
        last = max(last, held + top)
    return own, [*own_tops, last], held


def _top(spans: Sequence[_Span], totals: Sequence[int]) -> int:
    """Where the highest total in the spans is.

    Of equal ones the one at the start of a span counts, where nothing is under way, else the first.
    """
    start, end, peak = max(spans, key=lambda span: span.peak_bytes)
    starts = (span.start for span in spans if totals[span.start] == peak)
    return next(starts, totals.index(peak, start, end + 1))


def _alive(
    places: Collection[int], terms: Sequence[int], deltas: Sequence[int]
) -> dict[int, dict[Term, int]]:
    """Bytes of each term after so many changes, for each of ``places``; no term with none."""
    sums = [0] * len(_TERMS)
    found: dict[int, dict[Term, int]] = {}
    done = 0
    for place in sorted(places):
        for term, delta in zip(terms[done:place], deltas[done:place], strict=True):
            sums[term] += delta
        found[place] = {term: size for term, size in zip(_TERMS, sums, strict=True) if size}
        done = place
    return found
