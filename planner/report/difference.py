"""Two plans side by side, term by term."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.memory.terms import Term
from planner.planned import Plan
from planner.report.plan import heading
from planner.units import show_gib


def document(left: Plan, right: Plan) -> dict[str, Any]:
    """Both worst ranks at their peaks as ``planner.diff/1``; bytes, the first file first."""
    both = (left, right)
    return {
        "schema": "planner.diff/1",
        "files": [str(plan.spec.path) for plan in both],
        "verdicts": [plan.verdict for plan in both],
        "phases": [plan.worst.peak.phase for plan in both],
        "stages": [plan.worst.stage for plan in both],
        "terms": {term.label: list(pair) for term, pair in _terms(left, right).items()},
        **{name: [getter(plan) for plan in both] for name, getter in _SIZES.items()},
    }


_SIZES: Mapping[str, Callable[[Plan], int]] = {
    "allocated_bytes": lambda plan: plan.worst.peak.peak_bytes,
    "reserved_bytes": lambda plan: plan.worst.beyond.reserved_bytes,
    "device_bytes": lambda plan: plan.worst.beyond.device_bytes,
    "headroom_bytes": lambda plan: plan.headroom_bytes,
    "host_bytes": lambda plan: plan.worst.host_bytes,
}


def _terms(left: Plan, right: Plan) -> dict[Term, tuple[int, int]]:
    """At the peaks, those that differ most first."""
    sides = [plan.worst.peak.terms for plan in (left, right)]
    present = [term for term in Term if any(term in side for side in sides)]
    pairs = {term: (sides[0].get(term, 0), sides[1].get(term, 0)) for term in present}
    return dict(sorted(pairs.items(), key=lambda item: -abs(item[1][1] - item[1][0])))


def render(left: Plan, right: Plan, *, width: int) -> RenderableType:
    """What each is, then a line a term with the difference."""
    del width
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("GiB of the worst rank")
    for name in ("first", "second", "change"):
        table.add_column(name, justify="right")
    for term, pair in _terms(left, right).items():
        _row(table, term.label.replace("_", " "), pair)
    for name, getter in _SIZES.items():
        label = name.removesuffix("_bytes")
        _row(table, label, (getter(left), getter(right)), style="bold")
    phases = (plan.worst.peak.phase.replace("_", " ") for plan in (left, right))
    table.add_row("peak in", *phases, "")
    table.add_row("verdict", left.verdict, right.verdict, "")
    headings = [Text(f"{plan.spec.path}\n{heading(plan)}\n") for plan in (left, right)]
    return Group(*headings, table)


def _row(table: Table, name: str, pair: tuple[int, int], style: str = "") -> None:
    change = pair[1] - pair[0]
    told = f"{'+' if change > 0 else ''}{show_gib(change)}" if change else "same"
    table.add_row(name, *map(show_gib, pair), told, style=style)
