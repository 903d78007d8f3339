"""``planner rehearse`` of many files: one line each."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.units import show_gib


def render(records: Sequence[Mapping[str, Any]], *, width: int) -> RenderableType:
    """Every file's highest point, planned and booked; what stopped the others."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, width=min(width, 120))
    table.add_column("file", overflow="fold")
    for name in ("ranks", "planned", "booked", "error"):
        table.add_column(name, justify="right")
    stopped = []
    for record in records:
        why = _stopped(record)
        if why is None:
            table.add_row(record["name"], *_row(record["document"]["points"]))
        else:
            stopped.append(Text(f"{record['name']}: {why}", style="red", overflow="fold"))
    heading = Text("GiB allocated at the highest point of all rehearsed ranks")
    return Group(heading, Text(), table, *stopped)


def _row(points: Sequence[Mapping[str, Any]]) -> tuple[str, str, str, str]:
    peaks = [point for point in points if point["quantity"] == "peak_allocated"]
    planned = max(point["predicted_bytes"] for point in peaks)
    booked = max(point["measured_bytes"] for point in peaks)
    ranks = {point["rank"] for point in peaks}
    return f"{len(ranks)}", show_gib(planned), show_gib(booked), f"{planned / booked - 1:+.3%}"


def _stopped(record: Mapping[str, Any]) -> str | None:
    if record["error"] is not None:
        return str(record["error"])
    failures = record["document"]["failures"]
    if not failures:
        return None
    first = failures[0]
    return f"rank {first['rank']}: {first['kind']}: {first['message'].splitlines()[0]}"
