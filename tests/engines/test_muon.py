"""Muon: what an update takes, by hand, and steps that end where they began."""

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.engines.deepspeed.newton_schulz import update_bytes
from planner.engines.deepspeed.zero3 import zero_three
from planner.engines.deepspeed.zero12 import zero12
from planner.memory.terms import Term
from tests.engines.drive import drive, make_setup, phases

FLAG = 1
"""Whether the gradient is finite, one bool."""
SHAPES = st.lists(
    st.tuples(st.sampled_from([4, 8, 12]), st.sampled_from([4, 8, 16])), min_size=1, max_size=6
)


def test_a_square_matrix_has_six_of_itself_in_fp16():
    # X, last gram and change; then scale(X), change @ X and their sum (original_muon.py:112-117).
    assert update_bytes((64, 64), "bf16") == 6 * 64 * 64 * 2 + FLAG


def test_a_wide_matrix_has_itself_and_seven_grams():
    # X; R, Z, Q, RZ, and three parts of the sum that makes the next (original_muon.py:126-141).
    assert update_bytes((64, 176), "bf16") == (64 * 176 + 7 * 64 * 64) * 2 + FLAG


def test_a_very_wide_one_is_highest_before_the_iteration():
    # fp32: the blended momentum and what is chosen of it (original_muon.py:214).
    assert update_bytes((4, 4096), "fp32") == 2 * 4 * 4096 * 4 + FLAG


@given(rows=st.integers(1, 64), columns=st.integers(1, 64), batch=st.integers(1, 4))
def test_turning_a_matrix_changes_nothing_and_a_batch_is_so_many(rows, columns, batch):
    one = update_bytes((rows, columns), "fp32")
    assert update_bytes((columns, rows), "fp32") == one
    assert update_bytes((2 * batch, rows, columns), "fp32") > update_bytes(
        (batch, rows, columns), "fp32"
    )


@settings(max_examples=30)
@given(matrices=SHAPES, dp=st.sampled_from([1, 2, 4]), stage=st.sampled_from([1, 2, 3]))
def test_a_step_ends_where_the_last_one_did(matrices, dp, stage):
    zero = {"reduce_bucket_size": 100, "reduce_scatter": stage != 3}
    shapes = [*matrices, (16,)]
    setup = make_setup(
        shapes, dp=dp, stage=stage, micro_steps=2, training={"optimizer": "muon"}, zero=zero
    )
    strategy = zero_three(setup) if stage == 3 else zero12(setup)
    timeline = drive(strategy, setup, steps=3)
    for rank in range(dp):
        at = phases(timeline, rank)
        assert at["1.step"].end_terms == at["2.step"].end_terms
        assert at["2.step"].end_terms[Term.OPTIMIZER_STATES] > 0
