"""``planner rehearse``: what the real engine booked, beside the plan."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.rehearse.replay import of_rank
from planner.rehearse.reserved import ReservedPoint
from planner.rehearse.run import Rehearsal
from planner.report.plan import heading
from planner.report.timeline import save, series
from planner.report.validation import failure_lines, points_table, summary_lines
from planner.units import GIB, MIB, show_gib
from planner.validate.compare import Point
from planner.validate.job import RankResult


def render(rehearsal: Rehearsal, *, width: int) -> RenderableType:
    """Every rank and phase at its highest point, then what differs."""
    peaks = [point for point in rehearsal.points if point.quantity == "peak_allocated"]
    return Group(
        Text(heading(rehearsal.plan)),
        Text("MiB allocated at the highest point of every phase"),
        Text(),
        points_table(peaks, width),
        Text(),
        *_reserved(peaks, rehearsal.reserved),
        *summary_lines(rehearsal.points),
        *failure_lines(rehearsal.results),
        *_refused(rehearsal.results),
        Text(
            f"{len(rehearsal.results)} rank(s) in {rehearsal.seconds:.0f} s, at most "
            f"{show_gib(rehearsal.host_peak_bytes)} GiB of this machine's memory each"
        ),
    )


def draw_timelines(rehearsal: Rehearsal, drawn: Path, figure: Path) -> None:
    """A picture of every rank; ``drawn`` is where their snapshots are."""
    many = len(rehearsal.results) > 1
    for result in rehearsal.results:
        source = of_rank(drawn, result.rank, many=many)
        if source.exists():
            save(
                series(json.loads(source.read_text(encoding="utf-8"))),
                of_rank(figure, result.rank, many=many),
                title=f"{heading(rehearsal.plan).splitlines()[0]}, rank {result.rank}",
                capacity_bytes=rehearsal.plan.capacity_bytes
                - rehearsal.plan.worst.beyond.outside_bytes,
            )


def _reserved(peaks: Sequence[Point], reserved: Sequence[ReservedPoint]) -> list[RenderableType]:
    """Beside what was allocated, what PyTorch's allocator would hold; nothing on CPUs."""
    if not reserved:
        return []
    allocated = {(point.rank, point.phase): point.measured_bytes for point in peaks}
    highest: dict[int, int] = {}
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("rank", "phase"):
        table.add_column(name, overflow="fold")
    for name in ("allocated", "reserved", "above", "lagging", "estimate of the plan"):
        table.add_column(name, justify="right", overflow="fold")
    for point in reserved:
        held = allocated[point.rank, point.phase]
        highest[point.rank] = max(held, highest.get(point.rank, 0))
        table.add_row(
            str(point.rank),
            point.phase.replace("_", " "),
            f"{held / MIB:,.0f}",
            f"{point.measured_bytes / MIB:,.0f}",
            f"{point.measured_bytes / highest[point.rank] - 1:+.1%}",
            f"{point.high_bytes / MIB:,.0f}",
            f"{point.predicted_bytes / MIB:,.0f}",
        )
    heading = (
        "MiB that PyTorch's caching allocator reserves, replayed; above: of the highest allocated "
        "so far, as it keeps what it once took; lagging: on a device that lags behind the host"
    )
    return [Text(heading), Text(), table, Text()]


def _refused(results: Sequence[RankResult]) -> list[Text]:
    """One line a rank that would have run out of memory."""
    return [
        Text(
            f"rank {result.rank}: out of memory in {refused.phase} of step {refused.step}, at "
            f"{refused.wanted_bytes / MIB:,.0f} MiB for {refused.label}: of "
            f"{(refused.capacity_bytes or 0) / GIB:.2f} GiB for PyTorch "
            f"{refused.allocated_bytes / GIB:.2f} are allocated, "
            f"{(refused.reserved_bytes - refused.allocated_bytes) / GIB:.2f} fragmented",
            style="red",
            overflow="fold",
        )
        for result in results
        if (refused := result.refused) is not None
    ]
