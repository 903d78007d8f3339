"""Errors of many comparisons in a few numbers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from planner.accuracy.compare import Compared, Decided

NEAR, CLOSE = 0.05, 0.10
"""Absolute errors of which the shares are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Of one group of comparisons; errors are shares of the measured size."""

    name: str
    num_entries: int
    num_supported: int
    signed_median: float | None
    median_error: float | None
    worst_error: float | None
    within_5: float | None
    within_10: float | None
    inside: float | None
    """Share of the measurements that lie in their band."""
    peer_median: float | None
    """Median absolute error of the planners that the sources used, where they tell."""

    @property
    def coverage(self) -> float:
        """Share of the entries that could be planned."""
        return self.num_supported / self.num_entries


@dataclass(frozen=True, slots=True, kw_only=True)
class Fits:
    """How often the verdict was right."""

    num_entries: int
    num_supported: int
    right: int
    wrongly_fits: int
    """Said to fit, ran out of memory."""
    wrongly_refused: int
    """Said not to fit, ran."""
    undecided: int


def score(name: str, rows: Sequence[Compared]) -> Score:
    """Score a group, which has at least one comparison."""
    known = [row for row in rows if row.predicted is not None]
    errors = [row.error for row in known]
    sizes = [abs(error) for error in errors]
    return Score(
        name=name,
        num_entries=len(rows),
        num_supported=len(known),
        signed_median=median(errors) if errors else None,
        median_error=median(sizes) if sizes else None,
        worst_error=max(sizes, default=None),
        within_5=_share(size <= NEAR for size in sizes),
        within_10=_share(size <= CLOSE for size in sizes),
        inside=_share(row.inside for row in known),
        peer_median=_peers(known),
    )


def grouped(rows: Iterable[Compared], key: Callable[[Compared], str]) -> tuple[Score, ...]:
    """Score the groups that a key makes, in alphabetical order."""
    groups: dict[str, list[Compared]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return tuple(score(name, groups[name]) for name in sorted(groups))


def count_fits(rows: Sequence[Decided]) -> Fits:
    """Count right and wrong verdicts; what is not supported is undecided, too."""

    def count(said: str, *, fits: bool) -> int:
        return sum(row.predicted == said and row.entry.fits is fits for row in rows)

    return Fits(
        num_entries=len(rows),
        num_supported=sum(row.supported for row in rows),
        right=count("fits", fits=True) + count("does_not_fit", fits=False),
        wrongly_fits=count("fits", fits=False),
        wrongly_refused=count("does_not_fit", fits=True),
        undecided=sum(row.predicted == "undecided" for row in rows),
    )


def _peers(rows: Iterable[Compared]) -> float | None:
    errors = [
        abs(row.entry.peer_bytes / row.measured.size_bytes - 1)
        for row in rows
        if row.entry.peer_bytes is not None and row.measured is row.entry.measured
    ]
    return median(errors) if errors else None


def _share(found: Iterable[bool]) -> float | None:
    values = list(found)
    return sum(values) / len(values) if values else None
