"""Optimizer state and temporaries, counted by hand."""

import pytest

from planner.engines.deepspeed.optimizers import paged_bytes, state_bytes, temporary_bytes
from planner.spec.training import Training


@pytest.mark.parametrize(
    ("optimizer", "numel", "expected"),
    [
        pytest.param("adamw", 1000, 8000, id="two-moments"),
        pytest.param("sgd", 1000, 4000, id="momentum"),
        pytest.param("lion", 1000, 4000, id="one-moment"),
        pytest.param("adamw_8bit", 4095, 8 * 4095, id="8bit-small-tensors-stay-fp32"),
        pytest.param("adamw_8bit", 4096, 2 * (4096 + 4 * 16), id="8bit-16-blocks"),
        pytest.param("adamw_8bit", 4097, 2 * (4097 + 4 * 17), id="8bit-a-block-begun"),
        pytest.param("paged_adamw", 99_999, 8 * 99_999, id="paged-small-tensors-stay"),
        pytest.param("paged_adamw", 100_000, 0, id="paged"),
        pytest.param("paged_adamw_8bit", 99_999, 2 * (99_999 + 4 * 391), id="paged-8bit-small"),
        # Allocated by AdamW8bit of bitsandbytes 0.50.2 on the CPU: bytes, then scales.
        pytest.param("adamw_8bit", 100_003, 2 * 100_003 + 2 * 1564, id="8bit-measured"),
    ],
)
def test_state(optimizer, numel, expected):
    assert state_bytes(Training(sequence_length=1, optimizer=optimizer), numel) == expected


def test_moments_have_the_dtype_of_their_tensor_but_those_of_bitsandbytes():
    for optimizer, expected in (("adamw", 4 * 5000), ("adamw_8bit", 2 * (5000 + 4 * 20))):
        training = Training(sequence_length=1, optimizer=optimizer)
        assert state_bytes(training, 5000, element_bytes=2) == expected


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [("paged_adamw", 800_000), ("paged_adamw_8bit", 203_128), ("adamw", 0)],
)
def test_what_is_paged(optimizer, expected):
    assert paged_bytes(Training(sequence_length=1, optimizer=optimizer), 100_000) == expected


def test_lion_on_the_host_has_a_moment_that_nobody_reads():
    training = Training(sequence_length=1, optimizer="lion")
    assert state_bytes(training, 1000, on_host=True) == 2 * state_bytes(training, 1000)


def test_sgd_without_momentum_keeps_nothing():
    training = Training(sequence_length=1, optimizer="sgd", momentum=0.0)
    assert state_bytes(training, 1000) == 0


@pytest.mark.parametrize(
    ("kernel", "numels", "expected"),
    [
        pytest.param("fused", [100, 50], 0, id="fused"),
        pytest.param("foreach", [100, 50], 600, id="foreach-all-roots"),
        pytest.param("loop", [100], 800, id="loop-root-and-quotient"),
        pytest.param("loop", [100, 50], 800, id="loop-smaller-after"),
        pytest.param("loop", [50, 100], 4 * 50 + 8 * 100, id="loop-previous-quotient-is-alive"),
    ],
)
def test_temporaries(kernel, numels, expected):
    training = Training(sequence_length=1, optimizer_kernel=kernel)
    assert temporary_bytes(training, numels) == expected
