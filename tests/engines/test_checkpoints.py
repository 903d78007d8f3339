"""Checkpoints that depend on those before them: by hand, and what DeepSpeed refuses of them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.activations.programs.keeping import Keeping, keeping
from planner.activations.tape import LayerTape, Segment
from planner.engines.deepspeed.checkpoints import Checkpoints, arranged
from planner.layout.stage import LocalLayer, Stage
from planner.memory.terms import Term
from planner.model.description import Layer, Placed
from planner.spec.deepspeed import ActivationCheckpointing, DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Training
from tests.engines.test_refusals import MEGATRON, told

FULL = replace(MEGATRON, recompute="full")
INPUT = 96
PARTITIONED = ActivationCheckpointing(partition_activations=True)
ROOM = replace(PARTITIONED, contiguous_memory_optimization=True)
HOST = ActivationCheckpointing(cpu_checkpointing=True)


def make(keys, count, *, tp=1, pp=1, backend="cuda", training=FULL):
    return Checkpoints(
        count=count,
        input_bytes=INPUT,
        training=training,
        layout=Layout(dp=1, tp=tp, pp=pp),
        deepspeed=DeepSpeed(activation_checkpointing=keys),
        backend=backend,
    )


def totals(checkpoints):
    """Bytes that are kept after each block's forward and backward pass."""
    kept = checkpoints.piece_bytes if checkpoints.contiguous else INPUT
    change = ((Term.ACTIVATIONS, kept),)
    gone = ((Term.ACTIVATIONS, -kept),)
    tape = LayerTape(
        forward=(Segment(change, change, None),),
        backward=(Segment((), gone, None),),
        output_bytes=INPUT,
    )
    placed = Placed(prefix="", layer=Layer(kind="block", parameters=()))
    layers = (LocalLayer(placed=placed, parameters=(), places=()),) * checkpoints.count
    stage = Stage(index=0, num_stages=1, layers=layers, registered=())
    tapes = arranged((tape,) * checkpoints.count, stage, checkpoints)
    now, result = 0, []
    for segments in (*(t.forward for t in tapes), *(t.backward for t in reversed(tapes))):
        now += sum(size for segment in segments for _, size in segment.net)
        result.append(now)
    return result


def test_room_for_all_is_made_at_the_first_and_the_rest_given_up_at_the_last():
    keys = replace(ROOM, number_checkpoints=5)
    assert totals(make(keys, 3, tp=2)) == [240, 240, 240, 96, 48, 0]


def test_two_inputs_stay_while_older_ones_leave():
    assert totals(make(HOST, 4)) == [96, 192, 192, 192, 96, 0, 0, 0]


@given(
    count=st.integers(1, 9), more=st.integers(0, 4), keys=st.sampled_from([PARTITIONED, ROOM, HOST])
)
def test_nothing_is_left_after_the_last_backward(count, more, keys):
    keys = replace(keys, number_checkpoints=count + more)
    assert totals(make(keys, count, tp=4))[-1] == 0


@pytest.mark.parametrize(
    ("keys", "tp", "pp", "in_flight", "expected"),
    [
        pytest.param(PARTITIONED, 2, 1, 1, 0, id="on the device"),
        pytest.param(HOST, 1, 1, 1, 2 * INPUT, id="all but the newest"),
        pytest.param(replace(PARTITIONED, cpu_checkpointing=True), 2, 2, 2, 6 * 48, id="pieces"),
        pytest.param(
            replace(ROOM, cpu_checkpointing=True, number_checkpoints=7), 2, 1, 1, 7 * 48, id="room"
        ),
    ],
)
def test_bytes_on_the_host(keys, tp, pp, in_flight, expected):
    assert make(keys, 3, tp=tp, pp=pp).host_bytes(in_flight) == expected


def test_layers_that_deepspeed_does_not_recompute_keep_nothing_on_the_host():
    hf = replace(FULL, implementation="hf")
    assert make(HOST, 3, training=hf).host_bytes(1) == 0


def test_a_cpu_rank_has_no_host_beside_it():
    keys = DeepSpeed(activation_checkpointing=replace(PARTITIONED, cpu_checkpointing=True))
    layout = Layout(dp=1, tp=4)
    assert keeping(layout, keys, "cpu") == Keeping(parts=4, on_host=False)
    assert keeping(layout, keys, "cuda") == Keeping(parts=4, on_host=True)


@pytest.mark.parametrize(
    ("keys", "layout", "message"),
    [
        (replace(ROOM, partition_activations=False, number_checkpoints=6), {}, "must be partit"),
        (ROOM, {}, "number of checkpoints must be told"),
        (replace(ROOM, number_checkpoints=1), {}, "1 is less than the"),
        (replace(ROOM, number_checkpoints=64), {"pp": 2}, "several micro-batches share"),
        (HOST, {"pp": 2}, "on their way to the host"),
    ],
)
def test_what_does_not_run_is_refused(keys, layout, message):
    messages = told(Layout(dp=1, **layout), FULL, activation_checkpointing=keys)
    assert [text for text in messages if message in text], messages


def test_what_runs_is_not_refused():
    for keys in (PARTITIONED, replace(ROOM, number_checkpoints=64), HOST):
        assert told(Layout(dp=1, tp=2), FULL, activation_checkpointing=keys) == []


def test_training_without_recomputation_leaves_the_keys_unread():
    plain = Training(sequence_length=64)
    assert told(Layout(dp=2), plain, activation_checkpointing=ROOM) == []
