"""Stage 0, BF16_Optimizer and offload against closed forms; what differs between releases."""

import pytest

from planner.engines.deepspeed.below_three import below_three
from planner.memory.terms import Term
from tests.engines.drive import drive, make_setup, phases

UNIFORM = [[512, 512]] * 8
K = 8 * 512 * 512


def peaks(*, dp, stage, steps=2, rank=0, **kwargs):
    """Phases of one rank of a driven model."""
    setup = make_setup(UNIFORM, dp=dp, stage=stage, **kwargs)
    return phases(drive(below_three(setup), setup, steps=steps), rank)


def test_fp32_without_zero_is_16_bytes_a_parameter_while_gradients_live():
    found = peaks(dp=2, stage=0, training={"precision": "fp32"})
    assert found["init"].peak_bytes == 4 * K
    assert found["1.0.backward"].end_bytes == 16 * K
    assert found["1.step"].end_bytes == 12 * K


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_without_zero_step_the_optimizer_at_initialisation(precision):
    found = peaks(dp=2, stage=0, training={"precision": precision})
    assert found["init"].end_bytes == 14 * K
    assert found["0.0.backward"].end_bytes == 16 * K
    # Gradients 2K, their fp32 casts 4K and the flat copy of those 4K.
    assert found["0.step"].peak_bytes == 24 * K
    assert found["0.step"].end_bytes == 14 * K


def test_unfused_optimizers_cast_each_gradient_and_flatten_none():
    found = peaks(dp=2, stage=0, training={"optimizer_kernel": "foreach"})
    assert found["init"].end_bytes == 14 * K
    assert found["1.step"].peak_bytes == (14 + 2 + 4 + 4) * K


@pytest.mark.parametrize(("communication", "peak"), [(None, 16), ("fp32", 14)])
def test_bf16_optimizer_as_measured_at_two_ranks(communication, peak):
    """16.0K with bf16 communication as measured; with fp32 14K and half a layer's cast (14.5K)."""
    found = peaks(dp=2, stage=1, grad_accum_dtype="fp32", communication_data_type=communication)
    assert found["1.0.forward"].end_bytes == 6 * K + 12 * K // 2
    layer = 4 * K // 8
    expected = peak * K if communication is None else peak * K + layer
    assert found["1.0.backward"].peak_bytes == expected
    assert found["1.step"].end_bytes == 6 * K + 12 * K // 2


@pytest.mark.parametrize("dp", [2, 4, 8])
@pytest.mark.parametrize("stage", [1, 2])
def test_offload_leaves_weights_and_one_gradient_on_the_device(dp, stage):
    setup = make_setup(UNIFORM, dp=dp, stage=stage, offload=True)
    strategy = below_three(setup)
    found = phases(drive(strategy, setup, steps=2), 0)
    assert found["1.step"].end_bytes == 2 * K + 2 * 512 * 512
    assert found["1.step"].peak_bytes == found["1.step"].end_bytes
    host = strategy.host_bytes(0)
    assert sum(host.values()) - host["gradient_buffer"] == (4 + 4 + 8 + 2) * K // dp


def test_accumulating_under_offload_keeps_whole_parameters_on_the_host():
    setup = make_setup([[300], [700]], dp=2, stage=2, micro_steps=2, offload=True)
    strategy = below_three(setup)
    # Partitions of 500: the first rank touches both parameters, the second only the larger.
    assert strategy.host_bytes(0)["accumulated_gradients"] == 2 * 1000
    assert strategy.host_bytes(1)["accumulated_gradients"] == 2 * 700


def test_bf16_without_zero_accumulated_in_fp32_up_to_0_17_5():
    before = peaks(dp=2, stage=0, version="0.17.5")
    after = peaks(dp=2, stage=0, version="0.17.6")
    # Weights and the gradients that are zeroed, not freed, fp32 sums, half of the state.
    assert before["1.step"].end_bytes == 2 * K + 2 * K + 4 * K + 12 * K // 2
    assert after["1.step"].end_bytes == 14 * K


def test_releases_before_0_18_7_flatten_on_the_host():
    on_host = peaks(dp=8, stage=2, version="0.18.6")
    on_device = peaks(dp=8, stage=2, version="0.18.7")
    assert on_device["init"].peak_bytes == 4 * K
    assert on_host["init"].peak_bytes < on_device["init"].peak_bytes


def test_a_full_device_flattens_on_the_host_too():
    roomy = peaks(dp=8, stage=2, capacity_bytes=4 * K)
    full = peaks(dp=8, stage=2, capacity_bytes=4 * K - 1)
    assert roomy["init"].peak_bytes == 4 * K
    assert full["init"].peak_bytes < 4 * K


def test_stage_2_keeps_an_fp32_partition_since_0_19_8():
    before = peaks(dp=2, stage=2, grad_accum_dtype="fp32", version="0.19.7")
    after = peaks(dp=2, stage=2, grad_accum_dtype="fp32", version="0.19.8")
    owned = Term.OWNED_GRADIENTS
    assert before["1.0.backward"].end_terms[owned] == 2 * K // 2
    assert after["1.0.backward"].end_terms[owned] == 4 * K // 2


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"stage": 0}, id="stage-0"),
        pytest.param({"stage": 0, "training": {"precision": "fp32"}}, id="stage-0-fp32"),
        pytest.param({"stage": 1, "grad_accum_dtype": "fp32"}, id="bf16-optimizer"),
        pytest.param({"stage": 1}, id="stage-1"),
        pytest.param({"stage": 2}, id="stage-2"),
        pytest.param({"stage": 2, "offload": True}, id="offload"),
    ],
)
def test_every_term_that_lasts_has_a_note(options):
    setup = make_setup(UNIFORM, dp=2, **options)
    strategy = below_three(setup)
    found = phases(drive(strategy, setup, steps=2), 0)
    explained = {note.term for note in strategy.notes()}
    assert set(found["1.0.backward"].end_terms) <= explained
    assert all(".py" in note.source or note.source == "autograd" for note in strategy.notes())
