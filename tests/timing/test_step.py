import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.model.catalogue import names
from planner.model.counts import count
from planner.spec.training import Training
from planner.timing.shapes import Setting, Shapes
from planner.timing.step import step_time
from tests.timing.settings import cluster, gpt, model, setting

LAYOUTS = Shapes(
    dp=np.array([32, 16, 8, 4, 2, 1]),
    tp=np.array([1, 2, 1, 8, 4, 8]),
    pp=np.array([1, 1, 4, 1, 4, 4]),
    zero_stage=np.array([3, 2, 1, 1, 0, 0]),
    micro_batch_size=np.array([1, 2, 4, 1, 2, 8]),
    micro_batches=np.array([4, 4, 8, 32, 32, 16]),
    recomputed_share=np.array([0.0, 0.5, 1.0, 0.0, 0.0, 1.0]),
    recomputes_core=np.array([False, False, False, True, False, False]),
)


def one(place):
    values = {
        name: np.broadcast_to(getattr(LAYOUTS, name), (6,))[place].item()
        for name in Shapes.__slots__
    }
    return Shapes(**values)


def seconds(told=None, **shapes):
    return float(step_time(told or setting(), Shapes(**({"dp": 1} | shapes))).seconds[0])


def test_many_layouts_at_once_are_each_of_them_alone():
    together = step_time(setting(), LAYOUTS).seconds
    alone = [float(step_time(setting(), one(place)).seconds[0]) for place in range(6)]
    assert together.tolist() == pytest.approx(alone, rel=1e-12)


def test_one_device_computes_and_updates_and_nothing_else():
    found = step_time(setting(machines=cluster(1)), Shapes(dp=1, micro_batch_size=4))
    waiting = (
        "tensor_parallel",
        "sequence_parallel",
        "expert_parallel",
        "pipeline",
        "bubble",
        "weight_gather",
        "gradient",
        "offload",
        "recompute",
    )
    assert {name: float(getattr(found, f"{name}_seconds")[0]) for name in waiting} == dict.fromkeys(
        waiting, 0.0
    )
    assert found.matmul_seconds[0] > 0
    assert found.optimizer_seconds[0] > 0


def test_no_device_exceeds_its_peak():
    assert np.all(step_time(setting(), LAYOUTS).hardware_flops_per_second < 312e12)


def test_full_recomputation_runs_the_blocks_forward_once_more():
    """4 passes for 3 but for the head: 8 blocks of 24 s h^2 (1 + s / 6h), the head 6 s h V."""
    of, s, h = gpt(8, 1024, 16), 2048, 1024
    plain, again = (
        step_time(setting(of), Shapes(dp=1, recomputed_share=share)) for share in (0.0, 1.0)
    )
    block = 24 * s * h**2 * (1 + s / (6 * h))
    more = again.hardware_flops - again.model_flops
    assert more[0] == pytest.approx(8 * block)
    assert plain.hardware_flops[0] == plain.model_flops[0] == again.model_flops[0]
    assert again.recompute_seconds[0] > 0


def test_every_other_block_costs_half_of_all():
    half, whole = (
        float(step_time(setting(), Shapes(dp=1, recomputed_share=share)).recompute_seconds[0])
        for share in (0.5, 1.0)
    )
    assert half == pytest.approx(whole / 2)


@settings(deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 64))
def test_more_micro_batches_take_in_proportion_but_for_the_ends(pp, count):
    once = step_time(setting(), Shapes(dp=1, pp=pp, micro_batches=count))
    twice = step_time(setting(), Shapes(dp=1, pp=pp, micro_batches=2 * count))
    assert twice.matmul_seconds == pytest.approx(2 * once.matmul_seconds)
    assert twice.bubble_seconds == pytest.approx(once.bubble_seconds)
    assert once.seconds < twice.seconds <= 2 * once.seconds


def test_tensor_parallelism_across_nodes_costs_more_than_within():
    """The same sixteen devices: on nodes of 8, tp 16 crosses; on nodes of 16 it does not."""
    of = gpt(8, 4096, 32)
    within, across = (
        seconds(setting(of, machines=cluster(16 // per_node, per_node=per_node)), tp=16, pp=1)
        for per_node in (16, 8)
    )
    assert across > within


def test_a_slow_network_favours_pipelines_over_zero_3():
    """arXiv:2104.04473, section 5.2: ZeRO-3 across nodes, or tensor and pipeline parallelism."""
    of = gpt(32, 4096, 32)
    for network, faster in (("ethernet-10g", "pipeline"), ("infiniband-xdr", "zero")):
        told = setting(of, machines=cluster(4, network=network))
        zero = seconds(told, dp=32, zero_stage=3, micro_batches=2)
        pipeline = seconds(told, dp=1, tp=8, pp=4, micro_batches=64)
        assert min(("zero", zero), ("pipeline", pipeline), key=lambda pair: pair[1])[0] == faster


def test_ulysses_and_experts_have_seconds_of_their_own():
    told = Setting(
        model=model("qwen3-30b-a3b"), cluster=cluster(4), training=Training(sequence_length=4096)
    )
    found = step_time(told, Shapes(dp=np.array([32, 8]), ep=np.array([8, 1]), sp=np.array([1, 4])))
    assert found.expert_parallel_seconds[0] > 0 == found.expert_parallel_seconds[1]
    assert found.sequence_parallel_seconds[1] > 0 == found.sequence_parallel_seconds[0]
    assert found.model_flops[1] == pytest.approx(found.model_flops[0] / 4)


def test_overlapped_all_reduces_are_hidden_behind_the_weights_gradients():
    shapes = Shapes(dp=1, tp=8, micro_batch_size=8)
    plain, hidden = (
        step_time(setting(gpt(8, 8192, 64), overlaps_tensor_parallel=overlaps), shapes)
        for overlaps in (False, True)
    )
    every, left = 2 * (1 + 8 * 2 + 1), (1 + 8 * 2 + 1) + 1  # the stem has no product to hide behind
    assert hidden.tensor_parallel_seconds / plain.tensor_parallel_seconds == pytest.approx(
        left / every
    )


@pytest.mark.parametrize("name", names())
def test_every_model_takes_at_least_six_flops_for_each_active_parameter(name):
    """``6 P D``: Kaplan et al. 2020, section 2.1; attention and tied heads add to it."""
    of = model(name)
    length = min(1024, of.max_positions)
    told = Setting(model=of, cluster=cluster(4), training=Training(sequence_length=length))
    found = step_time(told, Shapes(dp=32, zero_stage=1))
    least = 6 * count(of).active_without_embedding * length
    assert 0.99 * least < found.model_flops[0] < 2.5 * least
    assert np.isfinite(found.seconds[0])
    assert found.seconds[0] > found.model_flops[0] / 312e12
