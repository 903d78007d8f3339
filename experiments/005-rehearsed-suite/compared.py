"""Rehearsed beside real, reading by reading, and the table of it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import median
from typing import NamedTuple

from planner.validate.job import RankResult, Reading

LISTED = 0.0001
"""Of what was measured: every configuration that is further off is listed with its cause."""

ONE_MEMORY = (
    "on a CPU rank host and device are one memory, whose offloaded tensors are told apart by their "
    "labels; the stand-in has two"
)
NORMS = (
    "a layer norm on a CPU keeps its mean and deviation in 16 bits, the stand-in in fp32, as CUDA"
)
DROPOUT = (
    "dropout on a CPU keeps its mask in the values' dtype, the stand-in in booleans, as CUDA's "
    "fused kernel; and "
)
CAUSES: dict[str, str] = {
    "offload/*": ONE_MEMORY,
    "dropout/gpt2 on*": DROPOUT + NORMS,
    "family/gpt2*": DROPOUT + NORMS,
    "family/opt*": DROPOUT + NORMS,
    "dropout/gpt2 off*": NORMS,
    "family/bloom*": NORMS,
    "family/starcoder2*": NORMS,
    "pp/2 gpt2*": NORMS,
    "reference/gpt2*": NORMS,
}
"""Why a configuration differs, by a pattern of its name."""


class Point(NamedTuple):
    """One number of one phase."""

    rank: int
    reading: Reading
    """The real run's."""
    rehearsed: Reading
    quantity: str
    real_bytes: int
    error_bytes: int
    """Above zero: the rehearsal booked more."""

    @property
    def error(self) -> float:
        """Of what was measured."""
        return abs(self.error_bytes) / self.real_bytes if self.real_bytes else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One configuration."""

    name: str
    points: tuple[Point, ...]
    failures: tuple[str, ...]


def compared(name: str, real: Sequence[RankResult], rehearsed: Sequence[RankResult]) -> Compared:
    """All readings of all ranks, each beside its own."""
    own = {result.rank: result for result in rehearsed}
    pairs = [(result, own[result.rank]) for result in real if result.rank in own]
    return Compared(
        name=name,
        points=tuple(point for first, second in pairs for point in _points(first, second)),
        failures=tuple(
            f"rank {result.rank}, {result.failure.phase}: {result.failure.message.splitlines()[0]}"
            for result in rehearsed
            if result.failure is not None
        ),
    )


def _points(real: RankResult, rehearsed: RankResult) -> Iterator[Point]:
    if rehearsed.outcome != "done":
        return
    for one, other in zip(real.readings, rehearsed.readings, strict=True):
        if (one.step, one.phase) != (other.step, other.phase):
            raise ValueError(f"other phases: {one.step} {one.phase}, {other.step} {other.phase}")
        for quantity in ("peak_bytes", "end_bytes"):
            measured = getattr(one, quantity)
            error = getattr(other, quantity) - measured
            yield Point(real.rank, one, other, quantity, measured, error)


def table(rows: Sequence[Compared]) -> str:
    """Counts, what differs, what failed."""
    free = [row for row in rows if _cause(row.name) != ONE_MEMORY]
    points = [point for row in free for point in row.points]
    ranks = sum(len({point.rank for point in row.points}) for row in free)
    errors = [point.error for point in points] or [0.0]
    equal = sum(point.error_bytes == 0 for point in points)
    close = sum(point.error <= LISTED for point in points)
    counted = (
        f"{len(free)} configurations, {ranks} ranks, {len(points):,} numbers (rank, phase, peak "
        f"or end). Median difference {median(errors):.6%}, worst {max(errors):.4%}; {equal:,} "
        f"equal to the byte, {close:,} within {LISTED:.2%}. The {len(rows) - len(free)} with "
        "offload are not counted: a real CPU rank has no second memory."
    )
    parts = [
        counted,
        _by_size(points),
        _far(rows),
        *(f"- {row.name}: {why}" for row in rows for why in row.failures),
    ]
    return "\n\n".join(part for part in parts if part)


def _by_size(points: Iterable[Point]) -> str:
    """How many numbers are off by how much, in bytes."""
    bounds = (0, 64, 1024, 16 * 1024, 2**62)
    counts = dict.fromkeys(bounds, 0)
    for point in points:
        counts[next(bound for bound in bounds if abs(point.error_bytes) <= bound)] += 1
    named = [f"up to {bound:,} B" if bound < bounds[-1] else "more" for bound in bounds]
    cells = [f"{count:,}" for count in counts.values()]
    return _rows(["equal", *named[1:]], [cells])


def _far(rows: Sequence[Compared]) -> str:
    """The worst number of every configuration that has one far off."""
    worst = [max(row.points, key=lambda point: point.error) for row in rows if row.points]
    named = [(row.name, point) for row, point in
             zip((row for row in rows if row.points), worst, strict=True)
             if point.error > LISTED]  # fmt: skip
    named.sort(key=lambda pair: -pair[1].error)
    heads = ["configuration", "rank", "step, phase", "of", "real B", "rehearsed - real B", "%",
             "term, difference", "cause"]  # fmt: skip
    return _rows(heads, [_cells(name, point) for name, point in named])


def _cells(name: str, point: Point) -> list[str]:
    reading = point.reading
    return [
        name,
        str(point.rank),
        f"{reading.step}, {reading.phase}",
        point.quantity.removesuffix("_bytes"),
        f"{point.real_bytes:,}",
        f"{point.error_bytes:+,}",
        f"{100 * point.error:.3f}",
        _term(point),
        _cause(name),
    ]


def _cause(name: str) -> str:
    return next((why for glob, why in CAUSES.items() if fnmatchcase(name, glob)), "**not known**")


def _term(point: Point) -> str:
    field = point.quantity.replace("_bytes", "_terms")
    real, other = getattr(point.reading, field), getattr(point.rehearsed, field)
    sizes = {name: other.get(name, 0) - real.get(name, 0) for name in {*real, *other}}
    name = max(sizes, key=lambda each: abs(sizes[each]), default="")
    return f"{name} {sizes[name]:+,}" if name else ""


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
