import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.timing.constants import rates
from planner.timing.matmul import matmul_seconds
from tests.timing.settings import A100

PEAK = 312e12
SHARE = 0.5
A100_RATES = rates(A100, "bf16", SHARE)
MEMORY = 2039e9 * 0.88
DIM = st.integers(1, 4096)


def seconds(*shape, groups=1):
    return float(matmul_seconds(*shape, groups=groups, rates=A100_RATES))


def test_one_full_wave_runs_at_the_rate_of_large_products():
    """108 multiprocessors, a tile of 256 x 128 each: 12 x 9 tiles."""
    rows, columns, inner = 12 * 256, 9 * 128, 4096
    computing = 2 * rows * columns * inner / (PEAK * SHARE)
    writing = 2 * rows * columns / MEMORY
    assert seconds(rows, columns, inner) == pytest.approx(computing + writing, rel=1e-12)


def test_one_more_row_takes_a_wave_of_its_own():
    full = seconds(12 * 256, 9 * 128, 65536)
    assert seconds(12 * 256 + 1, 9 * 128, 65536) > 1.05 * full


def test_fp32_runs_outside_the_matrix_units():
    bf16 = seconds(8192, 8192, 65536)
    fp32 = float(matmul_seconds(8192, 8192, 65536, rates=rates(A100, "fp32", SHARE)))
    assert fp32 / bf16 == pytest.approx(312 / 19.5, rel=0.02)


def test_few_rows_take_at_least_as_long_as_their_matrix_takes_to_be_read():
    assert seconds(1, 8192, 8192) > 2 * 8192 * 8192 / MEMORY


def test_a_width_that_is_no_multiple_of_8_costs_more():
    assert seconds(4096, 50257, 4096) > 1.5 * seconds(4096, 50304, 4096)


def test_groups_are_products_beside_each_other():
    """Two products of half a wave fill the device as well as one of a whole wave."""
    halves = seconds(6 * 256, 9 * 128, 4096, groups=2)
    assert halves == pytest.approx(seconds(12 * 256, 9 * 128, 4096), rel=1e-3)


@given(DIM, DIM, DIM)
def test_never_faster_than_the_peak_and_never_shorter_for_more(rows, columns, inner):
    took = seconds(rows, columns, inner)
    assert took >= 2 * rows * columns * inner / PEAK
    assert seconds(2 * rows, columns, inner) >= took
    assert seconds(rows, columns, 2 * inner) >= took


def test_arrays_are_their_elements():
    rows = np.array([1, 100, 5000])
    assert matmul_seconds(rows, 512, 640, rates=A100_RATES).tolist() == [
        seconds(row, 512, 640) for row in rows.tolist()
    ]
