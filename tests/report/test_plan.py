"""A plan as a table: what a person must find in it, on narrow and wide terminals."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console, RenderableType

from planner.memory.terms import Term
from planner.plan import make_plan, plan_rank
from planner.planned import Plan
from planner.report.plan import COLUMNS, NARROW, Columns, document, render, render_rank
from planner.spec.load import Spec
from planner.units import GIB
from tests.test_plan import spec_of


def drawn(renderable: RenderableType, width: int) -> str:
    console = Console(file=StringIO(), width=width, highlight=False)
    console.print(renderable)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text


def large() -> Spec:
    return spec_of(
        model="llama-3-8b",
        devices=8,
        layout={"pp": 2, "zero_stage": 1},
        training={"sequence_length": 2048, "global_batch_size": 16, "recompute": "full"},
    )


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(large())


@pytest.mark.parametrize("columns", [COLUMNS, NARROW])
def test_every_term_has_exactly_one_place_in_a_narrow_table(columns: Columns) -> None:
    placed = [term for group in columns.values() for term in group]
    assert sorted(placed) == sorted(Term)


def test_no_heading_is_broken_in_80_columns(plan: Plan) -> None:
    text = drawn(render(plan, width=80), 80)
    heading = next(line for line in text.splitlines() if line.startswith("stage"))
    words = "stage layers weights grads optimizer activations other peak in phase device"
    assert heading.split() == words.split()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_a_stage_has_a_line_whose_parts_add_up_to_its_peak(plan: Plan, width: int) -> None:
    lines = drawn(render(plan, width=width), width).splitlines()
    for rank in plan.stages:
        (line,) = [line for line in lines if line.startswith(f"{rank.stage}  ")]
        sizes = [float(word) for word in line.split() if word.count(".") == 1]
        *parts, peak, device = sizes
        assert peak == pytest.approx(rank.peak.peak_bytes / GIB, abs=0.006)
        assert device == pytest.approx(rank.beyond.device_bytes / GIB, abs=0.006)
        assert sum(parts) == pytest.approx(peak, abs=0.006 * (len(parts) + 1))


def test_a_wide_table_names_the_terms_and_a_narrow_one_groups_them(plan: Plan) -> None:
    assert "pipeline" in drawn(render(plan, width=200), 200)
    assert "pipeline buffers" not in drawn(render(plan, width=80), 80)


def test_the_heading_says_what_is_planned(plan: Plan) -> None:
    text = drawn(render(plan, width=200), 200)
    assert "llama-3-8b: 8.03 B parameters on 8 x h100-sxm-80gb (79.10 GiB each)" in text
    assert "dp 4 tp 1 pp 2 ep 1 sp 1, ZeRO-1, bf16, adamw, 1 x 2048 tokens" in text
    assert "recompute full" in text
    for assumption in plan.assumptions:
        assert assumption in text.replace("\n", " ")


def test_one_rank_has_a_line_a_phase() -> None:
    plan = plan_rank(large(), 5)
    text = drawn(render_rank(plan, width=200), 200)
    assert "rank 5: stage 1 (" in text
    for phase in plan.ranks[0].phases:
        assert f"\n{phase.phase.replace('_', ' ')} " in text


def test_what_the_host_keeps_is_told_where_it_keeps_something() -> None:
    offloaded = spec_of(
        layout={"zero_stage": 3}, zero={"offload_optimizer": {"device": "cpu", "pin_memory": True}}
    )
    plan = make_plan(offloaded)
    most = max(rank.host_bytes for rank in plan.ranks) / GIB
    text = drawn(render(plan, width=200), 200)
    assert f"On the host: {most:.2f} GiB of rank" in text
    assert f"of the 4 devices of a node at most {4 * most:.2f}" in text
    assert "On the host" not in drawn(render(make_plan(spec_of()), width=200), 200)


def test_a_host_that_is_too_small_fits_nothing() -> None:
    offload = {"offload_optimizer": {"device": "cpu", "pin_memory": True}}
    spec = spec_of(layout={"zero_stage": 3}, zero=offload)
    needed = 4 * max(rank.host_bytes for rank in make_plan(spec).ranks)
    for lacking, verdict in ((0, "fits"), (4, "does not fit")):
        cluster = replace(spec.cluster, host_memory_bytes=needed - lacking)
        plan = make_plan(replace(spec, cluster=cluster))
        assert (plan.verdict, plan.host_over_bytes) == (verdict, lacking // 4)
        assert ("The host lacks" in drawn(render(plan, width=200), 200)) is bool(lacking)
        assert document(plan)["verdict"]["fits"] is not bool(lacking)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_the_document_keeps_every_byte(stage: int) -> None:
    plan = make_plan(spec_of(layout={"zero_stage": stage}), every_rank=True)
    for told, rank in zip(document(plan)["ranks"], plan.ranks, strict=True):
        assert told["peak"]["allocated_bytes"] == rank.peak.peak_bytes
        for phase in told["phases"]:
            assert sum(phase["terms"].values()) == phase["peak_allocated_bytes"]
