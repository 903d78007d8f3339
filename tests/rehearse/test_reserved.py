"""Reserved memory of rehearsed ranks, beside the plan's estimate."""

from dataclasses import replace
from pathlib import Path

import pytest

from planner.memory.allocator.settings import DEFAULTS
from planner.plan import make_plan
from planner.rehearse.reserved import modelled, reserved_points
from planner.spec.load import load
from planner.units import GIB
from planner.validate.job import RankResult, Reading


@pytest.fixture(scope="module")
def plan():
    return make_plan(load("cluster_configs/llama-3-8b-8xh100.yaml"), every_rank=True)


def reading(step, phase, reserved, high):
    return Reading(
        step=step,
        phase=phase,
        start_bytes=0,
        end_bytes=0,
        peak_bytes=0,
        reserved_bytes=reserved,
        reserved_high_bytes=high,
    )


@pytest.fixture
def result():
    readings = (
        reading(-1, "init", 20 * GIB, 20 * GIB),
        reading(0, "forward", 30 * GIB, 31 * GIB),
        reading(0, "forward", 33 * GIB, 38 * GIB),
        reading(0, "backward", 34 * GIB, 38 * GIB),
        reading(0, "step", 36 * GIB, 39 * GIB),
        reading(1, "forward", 37 * GIB, 40 * GIB),
    )
    return RankResult(rank=0, outcome="done", readings=readings)


def test_a_phase_that_comes_again_counts_with_its_highest(plan, result):
    points = {point.phase: point for point in reserved_points(plan, [result])}
    assert list(points) == ["init", "first_forward", "first_backward", "first_step", "forward"]
    assert {point.quantity for point in points.values()} == {"peak_reserved"}
    first = points["first_forward"]
    assert (first.measured_bytes, first.high_bytes) == (33 * GIB, 38 * GIB)


def test_the_estimate_never_falls_as_what_is_reserved_stays(plan, result):
    told = [point.predicted_bytes for point in reserved_points(plan, [result])]
    assert told == sorted(told)
    assert told[-1] <= plan.ranks[0].beyond.reserved_bytes
    peaks = [phase.peak_bytes for phase in plan.ranks[0].phases]
    assert all(e >= max(peaks[: n + 1]) for n, e in enumerate(told))


def test_phases_that_a_full_device_did_not_reach_are_left_out(plan, result):
    *others, last = result.readings
    cut = replace(last, reserved_bytes=None, reserved_high_bytes=None)
    points = reserved_points(plan, [replace(result, readings=(*others, cut))])
    assert [point.phase for point in points][-1] == "first_step"


def test_the_allocator_has_what_context_and_communicators_leave(plan):
    found = modelled(plan, DEFAULTS, snapshots=[Path("trace.json")], many=True)
    worst = plan.worst.beyond
    assert found.device_bytes == plan.capacity_bytes
    assert found.capacity_bytes == plan.capacity_bytes - worst.outside_bytes
    assert 0 < worst.outside_bytes == worst.device_bytes - worst.reserved_bytes
    assert found.snapshots_of(3) == (Path("trace-rank3.json").absolute(),)


def test_a_cpu_has_no_such_allocator(plan):
    device = replace(plan.spec.cluster.device, architecture="cpu")
    spec = replace(plan.spec, cluster=replace(plan.spec.cluster, device=device))
    assert modelled(replace(plan, spec=spec), DEFAULTS, snapshots=(), many=False) is None
