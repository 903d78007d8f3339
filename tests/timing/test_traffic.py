import pytest

from planner.spec.layout import Layout
from planner.timing.layer import launch_seconds, profile
from planner.timing.traffic import made_by_passes, moved_bytes
from tests.timing.settings import gpt, setting

S, H = 2048, 1024
U = 2 * S * H
"""Bytes of hidden states of one sequence."""


def test_a_fused_layer_norm_is_read_and_written():
    """One result like its input, and two fp32 numbers a row."""
    of = gpt(8, H, 16)
    made = made_by_passes(of.tail[0].layer, setting(of), Layout(dp=1))
    assert made.forward.bytes == U + 2 * 4 * S
    assert moved_bytes(made.forward.bytes, 0) == pytest.approx(2 * U, rel=0.01)


def test_a_gpt_block_moves_what_its_element_wise_operations_do():
    """By hand, in hidden states read and written: norms 2 x 2; GELU 4 + 4; dropout and residual
    2 x 3.5; the context's copy 2; scores of 16 heads of 2048 x 2048, A S / H of U each: softmax 2,
    dropout 1 + 1 + 0.5. That a mask counts as read in the forward pass is 9 % too much.
    """
    of = gpt(8, H, 16)
    scores = 16 * S / H
    by_hand = 4 + 8 + 7 + 2 + 4.5 * scores
    found = profile(of.blocks[0].layer, setting(of), Layout(dp=1)).forward
    assert found.bytes / U == pytest.approx(by_hand, rel=0.1)


def test_tensor_parallelism_leaves_norms_and_residuals_whole():
    of = gpt(8, H, 16)
    whole, cut = (
        profile(of.blocks[0].layer, setting(of), Layout(dp=1, tp=tp, pp=2)).forward.bytes
        for tp in (1, 8)
    )
    ends = 4 + 7
    assert cut / U == pytest.approx(ends + (whole / U - ends) / 8, rel=0.05)


def test_launches_wait_only_where_the_host_is_behind():
    assert float(launch_seconds(100, 1.0, blocking=False)) == 0.0
    assert float(launch_seconds(100, 0.0004, blocking=False)) == pytest.approx(0.0006)
    assert float(launch_seconds(100, 1.0, blocking=True)) == pytest.approx(0.005)
