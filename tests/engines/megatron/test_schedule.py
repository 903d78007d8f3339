"""Megatron's order of passes against its own rules, counted by hand and by property."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.engines.megatron.schedule import passes_in_order, sufficient_micro_batches

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
"""Pipeline stages, groups of micro-batches, chunks."""


def in_flight(stage, num_stages, micro_batches, chunks):
    """Most passes whose backward pass has not run yet."""
    now = top = 0
    for forward, _ in passes_in_order(stage, num_stages, micro_batches, chunks):
        now += 1 if forward else -1
        top = max(top, now)
    return top


@given(SHAPES)
def test_every_chunk_goes_forward_and_back_once_for_each_micro_batch(shape):
    num_stages, groups, chunks = shape
    count = groups * num_stages
    for stage in range(num_stages):
        passes = list(passes_in_order(stage, num_stages, count, chunks))
        for chunk in range(chunks):
            assert passes.count((True, chunk)) == count
            assert passes.count((False, chunk)) == count


@pytest.mark.parametrize(
    ("stage", "num_stages", "micro_batches", "chunks", "most"),
    [
        (0, 4, 8, 1, 4),
        (3, 4, 8, 1, 1),
        (0, 4, 2, 1, 2),
        # (p - r - 1) * 2 + (v - 1) * p + 1: arXiv:2104.04473, section 2.2, as Megatron runs it
        (0, 4, 8, 2, 11),
        (3, 4, 8, 2, 5),
        (1, 2, 4, 4, 7),
    ],
)
def test_passes_in_flight(stage, num_stages, micro_batches, chunks, most):
    assert in_flight(stage, num_stages, micro_batches, chunks) == most


@given(SHAPES, st.integers(1, 60))
def test_fewer_micro_batches_reach_the_same_height(shape, count):
    num_stages, _, chunks = shape
    fewer = sufficient_micro_batches(count, num_stages)
    for stage in range(num_stages):
        assert in_flight(stage, num_stages, fewer, chunks) == in_flight(
            stage, num_stages, count, chunks
        )
