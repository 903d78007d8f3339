"""A search as a JSON document and as a table."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.search.candidate import Candidate
from planner.search.cost import SECONDS_PER_HOUR, Cost, training_cost
from planner.search.search import Answer, Ranked
from planner.units import show_gib


def document(answer: Answer) -> dict[str, Any]:
    """The answer as ``planner.search/1``; sizes in bytes."""
    return {
        "schema": "planner.search/1",
        "file": str(answer.spec.path),
        "model": answer.model.name,
        "num_devices": answer.spec.cluster.num_devices,
        "num_layouts": answer.num_layouts,
        "num_fitting": answer.num_fitting,
        "seconds": answer.seconds,
        "layouts": [_layout(answer, ranked) for ranked in answer.ranked],
        "front": [_layout(answer, ranked) for ranked in answer.front],
        "refused": dict(answer.misfits),
    }


def _layout(answer: Answer, ranked: Ranked) -> dict[str, Any]:
    held, cost = ranked.held, _cost(answer, ranked)
    return {
        "layout": held.candidate.document(),
        "step_seconds": ranked.step_seconds,
        "tokens_per_second": ranked.tokens_per_second,
        "peak": {
            "phase": held.phase,
            "stage": held.stage,
            "allocated_bytes": held.allocated_bytes,
            "reserved_bytes": held.reserved_bytes,
            "device_bytes": held.device_bytes,
        },
        "headroom_bytes": held.headroom_bytes,
        "host_bytes": held.host_bytes,
        **({} if cost is None else {"training": cost._asdict()}),
    }


def _cost(answer: Answer, ranked: Ranked) -> Cost | None:
    spec = answer.spec
    return training_cost(spec.search, spec.cluster, ranked.tokens_per_second)


def render(answer: Answer, *, width: int) -> RenderableType:
    """Heading, one line a layout, and why the others do not fit."""
    del width
    cluster = answer.spec.cluster
    parts: list[RenderableType] = [
        Text(
            f"{answer.model.name} on {cluster.num_devices} x {cluster.device.name} "
            f"({show_gib(cluster.device.memory_bytes)} GiB each): {answer.num_fitting:,} of "
            f"{answer.num_layouts:,} layouts fit"
        ),
        Text(),
    ]
    if answer.ranked:
        parts += [_table(answer, answer.ranked), Text()]
        parts += [Text("no other is faster and leaves more room:"), _table(answer, answer.front)]
        parts.append(Text())
    parts += [Text(f"{count:>7,} do not fit: {why}") for why, count in answer.misfits.items()]
    return Group(*parts)


def _table(answer: Answer, ranked: Sequence[Ranked]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in (*_AXES, "zero", "batch", "recompute", "offload"):
        table.add_column(name, justify="right")
    costs = [_cost(answer, each) for each in ranked]
    told = () if None in costs else ("days", "device-hours", "price")
    for name in ("s/step", "tokens/s", "peak GiB", "free GiB", *told):
        table.add_column(name, justify="right", no_wrap=True)
    for each, cost in zip(ranked, costs, strict=True):
        held = each.held
        table.add_row(
            *_choice(held.candidate),
            f"{each.step_seconds:.3g}",
            f"{each.tokens_per_second:,.0f}",
            show_gib(held.allocated_bytes, 1),
            show_gib(held.headroom_bytes, 1),
            *_money(cost),
        )
    return table


def _money(cost: Cost | None) -> tuple[str, ...]:
    if cost is None:
        return ()
    days = cost.seconds / SECONDS_PER_HOUR / 24
    price = "" if cost.price is None else f"{cost.price:,.0f}"
    return f"{days:,.1f}", f"{cost.device_hours:,.0f}", price


_AXES = ("dp", "tp", "pp", "ep", "sp")


def _choice(candidate: Candidate) -> tuple[str, ...]:
    degrees = (str(getattr(candidate.layout, axis)) for axis in _AXES)
    knobs = (candidate.layout.zero_stage, candidate.micro_batch_size)
    return (*degrees, *map(str, knobs), candidate.recompute, candidate.offload)
