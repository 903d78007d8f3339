"""A plan as a JSON document and as a table that a person reads in ten seconds."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.memory.terms import Term
from planner.memory.timeline import PhasePeak
from planner.model.counts import count
from planner.planned import Plan, RankPlan
from planner.units import show_gib

Columns = dict[str, tuple[Term, ...]]

COLUMNS: Columns = {
    "weights": (Term.WEIGHTS, Term.GATHERED_WEIGHTS),
    "gradients": (Term.GRADIENTS, Term.OWNED_GRADIENTS),
    "optimizer": (Term.MASTER_WEIGHTS, Term.OPTIMIZER_STATES),
    "buffers": (Term.BUCKETS, Term.REDUCE_COPIES, Term.PIPELINE_BUFFERS, Term.WORKSPACES),
    "activations": (Term.ACTIVATIONS, Term.LOGITS),
    "temporary": (Term.TRANSIENT, Term.STEP_COPIES, Term.INIT_COPIES),
}
"""The terms as a terminal shows them that has no room for each."""

NARROW: Columns = {
    "weights": COLUMNS["weights"],
    "grads": COLUMNS["gradients"],
    "optimizer": COLUMNS["optimizer"],
    "activations": COLUMNS["activations"],
    "other": COLUMNS["buffers"] + COLUMNS["temporary"],
}
"""The terms in 80 columns."""


def document(plan: Plan) -> dict[str, Any]:
    """The plan as ``planner.plan/1``; sizes in bytes."""
    layout = plan.spec.fixed_layout
    return {
        "schema": "planner.plan/1",
        "file": str(plan.spec.path),
        "model": {
            "name": plan.model.name,
            "parameters": {"total": plan.model.num_parameters, "active": count(plan.model).active},
        },
        "layout": asdict(layout),
        "num_devices": layout.num_devices,
        "ranks": [_rank(rank) for rank in plan.ranks],
        "verdict": {
            "fits": plan.verdict != "does not fit",
            "verdict": plan.verdict,
            "worst_rank": plan.worst.rank,
            "capacity_bytes": plan.capacity_bytes,
            "headroom_bytes": plan.headroom_bytes,
            "host_over_bytes": plan.host_over_bytes,
        },
        "assumptions": list(plan.assumptions),
        "warnings": list(plan.warnings),
    }


def _rank(rank: RankPlan) -> dict[str, Any]:
    return {
        "rank": rank.rank,
        "num_ranks": rank.num_ranks,
        "stage": rank.stage,
        "coordinates": rank.coordinates,
        "local_parameters": rank.local_parameters,
        "peak": {
            "phase": rank.peak.phase,
            "allocated_bytes": rank.peak.peak_bytes,
            "reserved_bytes": rank.beyond.reserved_bytes,
            "device_bytes": rank.beyond.device_bytes,
            "reserved_range_bytes": [
                rank.beyond.reserved_low_bytes,
                rank.beyond.reserved_high_bytes,
            ],
            "device_range_bytes": [rank.beyond.device_low_bytes, rank.beyond.device_high_bytes],
        },
        "phases": [_phase(phase) for phase in rank.phases],
        "host_bytes": rank.host_bytes,
    }


def _phase(phase: PhasePeak) -> dict[str, Any]:
    return {
        "phase": phase.phase,
        "allocated_bytes": phase.end_bytes,
        "peak_allocated_bytes": phase.peak_bytes,
        "terms": {term.label: size for term, size in phase.terms.items()},
    }


def render(plan: Plan, *, width: int) -> RenderableType:
    """Heading, one line a stage, verdict, assumptions; more columns on a wide terminal."""
    return Group(
        Text(heading(plan)),
        Text("GiB of each stage's worst rank, at its highest point"),
        Text(),
        _table(plan, _columns(plan, width)),
        Text(),
        _verdict(plan),
        *_host(plan),
        *_remarks("warning", plan.warnings),
        *_remarks("assumed", plan.assumptions),
    )


def render_rank(plan: Plan, *, width: int) -> RenderableType:
    """One rank over the step: a line a phase, a column a term."""
    rank = plan.ranks[0]
    present = [term for term in Term if any(term in phase.terms for phase in rank.phases)]
    columns = _fitting(present, width)
    table = _grid(("phase",), (*columns, "peak", "after"))
    for phase in rank.phases:
        table.add_row(
            phase.phase.replace("_", " "),
            *_sizes(phase.terms, columns),
            show_gib(phase.peak_bytes),
            show_gib(phase.end_bytes),
        )
    place = ", ".join(f"{axis} {index}" for axis, index in rank.coordinates.items())
    told = f"rank {rank.rank}: stage {rank.stage} ({rank.layers}), {place}, "
    return Group(
        Text(heading(plan)),
        Text(told + f"{rank.local_parameters:,} parameters before ZeRO"),
        Text("GiB, at each phase's highest point, and what is left after it"),
        Text(),
        table,
        Text(),
        _verdict(plan),
        *_host(plan),
        *_remarks("warning", plan.warnings),
        *_remarks("assumed", plan.assumptions),
    )


def _engine(plan: Plan) -> str:
    """DeepSpeed by the stage of its ZeRO, other engines by their name."""
    engine = plan.spec.framework.engine
    zero = f"ZeRO-{plan.spec.fixed_layout.zero_stage}"
    return zero if engine == "deepspeed" else f"engine {engine}"


def heading(plan: Plan) -> str:
    """What is planned, in two lines."""
    cluster, training, layout = plan.spec.cluster, plan.spec.training, plan.spec.fixed_layout
    axes = " ".join(f"{axis} {getattr(layout, axis)}" for axis in ("dp", "tp", "pp", "ep", "sp"))
    batch = f"{training.micro_batch_size} x {training.sequence_length} tokens a micro-step"
    billions, capacity = plan.model.num_parameters / 1e9, show_gib(plan.capacity_bytes)
    return (
        f"{plan.model.name}: {billions:.2f} B parameters on "
        f"{cluster.num_devices} x {cluster.device.name} ({capacity} GiB each)\n"
        f"{axes}, {_engine(plan)}, {training.precision}, {training.optimizer}, "
        f"{batch} x {plan.spec.micro_steps}, recompute {training.recompute}"
    )


def _columns(plan: Plan, width: int) -> Columns:
    """Every term that is there if the terminal has room for it, else as large groups as it asks."""
    present = [t for t in Term if any(t in rank.peak.terms for rank in plan.stages)]
    return _fitting(present, width)


def _fitting(present: Iterable[Term], width: int) -> Columns:
    single: Columns = {term.label.replace("_", " "): (term,) for term in present}
    return next((each for each in (single, COLUMNS) if width >= _needed(each)), NARROW)


def _needed(columns: Iterable[str]) -> int:
    """Characters of a line with these columns of sizes besides the other ones."""
    return 55 + sum(max(7, *map(len, name.split())) + 1 for name in columns)


def _sizes(terms: dict[Term, int], columns: Columns) -> list[str]:
    return [show_gib(sum(terms.get(term, 0) for term in group)) for group in columns.values()]


def _grid(left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        one_word = " " not in name  # rich breaks words where it may wrap
        table.add_column(name, justify="right", overflow="fold", no_wrap=one_word)
    return table


def _table(plan: Plan, columns: Columns) -> Table:
    table = _grid(("stage", "layers"), (*columns, "peak", "in phase", "device"))
    for rank in plan.stages:
        table.add_row(
            str(rank.stage),
            rank.layers,
            *_sizes(rank.peak.terms, columns),
            show_gib(rank.peak.peak_bytes),
            rank.peak.phase.replace("_", " "),
            show_gib(rank.beyond.device_bytes),
        )
    return table


def _verdict(plan: Plan) -> Text:
    worst = plan.worst
    low, high = worst.beyond.device_low_bytes, worst.beyond.device_high_bytes
    colour = {"fits": "green", "tight": "yellow", "does not fit": "red"}[plan.verdict]
    text = Text(plan.verdict.capitalize(), style=f"bold {colour}")
    text.append(
        f": rank {worst.rank} (stage {worst.stage}) peaks in {worst.peak.phase.replace('_', ' ')} "
        f"with {show_gib(worst.peak.peak_bytes)} GiB allocated, "
        f"{show_gib(worst.beyond.reserved_bytes)} reserved, "
        f"{show_gib(worst.beyond.device_bytes)} ({show_gib(low)} to {show_gib(high)}) of the "
        f"device's {show_gib(plan.capacity_bytes)}; headroom {show_gib(plan.headroom_bytes)} GiB.",
        style="",
    )
    return text


def _host(plan: Plan) -> list[Text]:
    """What is kept on the host, if anything is: of the rank with most, and so at most of a node."""
    rank, cluster = max(plan.ranks, key=lambda each: each.host_bytes), plan.spec.cluster
    if not rank.host_bytes:
        return []
    parts = (f"{name.replace('_', ' ')} {show_gib(size)}" for name, size in rank.host.items())
    there = cluster.host_memory_bytes
    told = "" if there is None else f" of the host's {show_gib(there)}"
    text = Text(
        f"On the host: {show_gib(rank.host_bytes)} GiB of rank {rank.rank} "
        f"({', '.join(parts)}); of the {cluster.devices_per_node} devices of a node at most "
        f"{show_gib(rank.host_bytes * cluster.devices_per_node)}{told}."
    )
    if plan.host_over_bytes:
        lacking = show_gib(plan.host_over_bytes * cluster.devices_per_node)
        text.append(f" The host lacks {lacking} GiB.", style="bold red")
    return [text]


def _remarks(label: str, remarks: tuple[str, ...]) -> list[Text]:
    return [Text(f"{label}: {remark}", style="dim") for remark in remarks]
