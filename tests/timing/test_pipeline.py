"""Oracle: DeepSpeed's schedule, instruction by instruction, played with a clock on every stage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.layout.schedule import instructions
from planner.timing.pipeline import boundary_seconds, bubble_seconds
from planner.timing.shapes import Shapes
from tests.timing.settings import setting


def played(forward, backward, micro_batches):
    """When the last stage is done if each pass waits for what it needs and for the one before."""
    stages = len(forward)
    queues = [
        [one for one in instructions(s, stages, micro_batches) if one.action in played.passes]
        for s in range(stages)
    ]
    clocks, done = [0.0] * stages, {}
    while any(queues):
        for stage, queue in enumerate(queues):
            while queue:
                kind, micro_batch = queue[0].action, queue[0].micro_batch
                neighbour = stage - 1 if kind == "forward" else stage + 1
                needed = (kind, neighbour, micro_batch)
                if 0 <= neighbour < stages and needed not in done:
                    break
                lasts = (forward if kind == "forward" else backward)[stage]
                clocks[stage] = max(clocks[stage], done.get(needed, 0.0)) + lasts
                done[kind, stage, micro_batch] = clocks[stage]
                queue.pop(0)
    return max(clocks)


played.passes = ("forward", "backward")


def formula(forward, backward, micro_batches):
    stages = np.add(forward, backward)
    bubble = bubble_seconds(stages.sum(), stages.max(), 1)
    return float(micro_batches * stages.max() + bubble)


@given(st.integers(1, 8), st.integers(1, 24), st.floats(0.1, 10), st.floats(0.1, 10))
def test_equal_stages_take_p_minus_1_plus_m_micro_batches(stages, micro_batches, ahead, back):
    clock = played([ahead] * stages, [back] * stages, micro_batches)
    assert formula([ahead] * stages, [back] * stages, micro_batches) == pytest.approx(clock)
    assert clock == pytest.approx((stages - 1 + micro_batches) * (ahead + back))


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=6), st.integers(12, 40))
def test_unequal_stages_are_as_slow_as_their_slowest(ahead, micro_batches):
    """Backward twice as long; what others do beside the slowest at the ends is left out."""
    back = [2 * each for each in ahead]
    clock = played(ahead, back, micro_batches)
    assert formula(ahead, back, micro_batches) == pytest.approx(clock, rel=0.15)


def test_chunks_divide_the_bubble():
    """``(p - 1) / v`` of a micro-batch: arXiv:2104.04473, section 2.2.2."""
    assert float(bubble_seconds(8.0, 1.0, 1)) == 7.0
    assert float(bubble_seconds(8.0, 1.0, 2)) == 3.5


def test_a_boundary_is_sent_in_shares_and_gathered():
    """B S H fp16 = 16.8 MB: an eighth over a port of 23 GB/s, then gathered over NVLink."""
    found = boundary_seconds(setting(), Shapes(dp=1, tp=8, pp=2, micro_batch_size=4))
    whole = 4 * 2048 * 1024 * 2
    sent = whole / 8 / (0.92 * 25e9) + 14e-6
    gathered = 7 / 8 * whole / (0.67 * 300e9) + 7 * 3.4e-6
    assert float(found) == pytest.approx(2 * (sent + gathered))


def test_without_a_pipeline_nothing_is_sent():
    assert float(boundary_seconds(setting(), Shapes(dp=32))) == 0.0
