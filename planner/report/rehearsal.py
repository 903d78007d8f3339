"""``planner rehearse``: what the real engine booked, beside the plan."""

from rich.console import Group, RenderableType
from rich.text import Text

from planner.rehearse.run import Rehearsal
from planner.report.plan import heading
from planner.report.validation import failure_lines, points_table, summary_lines
from planner.units import show_gib


def render(rehearsal: Rehearsal, *, width: int) -> RenderableType:
    """Every rank and phase at its highest point, then what differs."""
    peaks = [point for point in rehearsal.points if point.quantity == "peak_allocated"]
    return Group(
        Text(heading(rehearsal.plan)),
        Text("MiB allocated at the highest point of every phase"),
        Text(),
        points_table(peaks, width),
        Text(),
        *summary_lines(rehearsal.points),
        *failure_lines(rehearsal.results),
        Text(
            f"{len(rehearsal.results)} rank(s) in {rehearsal.seconds:.0f} s, at most "
            f"{show_gib(rehearsal.host_peak_bytes)} GiB of this machine's memory each"
        ),
    )
