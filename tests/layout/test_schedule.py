"""1F1B: properties of the schedule, and that few micro-batches show what many do."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from planner.layout.schedule import (
    in_flight,
    instructions,
    num_pipe_buffers,
    steps,
    sufficient_micro_batches,
)

pipelines = st.integers(1, 12).flatmap(
    lambda stages: st.tuples(st.integers(0, stages - 1), st.just(stages), st.integers(1, 40))
)


@given(pipelines)
def test_every_micro_batch_goes_forward_once_and_then_backward_once(pipeline):
    stage, stages, micro_batches = pipeline
    seen = [
        (i.action, i.micro_batch)
        for i in instructions(stage, stages, micro_batches)
        if i.action in {"forward", "backward"}
    ]
    assert len(seen) == len(set(seen)) == 2 * micro_batches
    for index in range(micro_batches):
        assert seen.index(("forward", index)) < seen.index(("backward", index))


@given(pipelines)
def test_so_many_are_in_flight_as_stages_follow(pipeline):
    stage, stages, micro_batches = pipeline
    waiting, most = 0, 0
    for instruction in instructions(stage, stages, micro_batches):
        waiting += {"forward": 1, "backward": -1}.get(instruction.action, 0)
        most = max(most, waiting)
    assert most == in_flight(stage, stages, micro_batches) == min(stages - stage, micro_batches)


@given(pipelines)
def test_a_buffer_is_free_when_a_forward_pass_takes_it(pipeline):
    taken = set()
    for instruction in instructions(*pipeline):
        if instruction.action == "forward":
            assert instruction.buffer not in taken
            taken.add(instruction.buffer)
        if instruction.action == "backward":
            taken.remove(instruction.buffer)
    assert not taken


@given(pipelines)
def test_neighbours_send_what_the_other_receives_at_the_same_time(pipeline):
    stage, stages, micro_batches = pipeline
    if stage == stages - 1:
        return
    here = steps(stage, stages, micro_batches)
    there = steps(stage + 1, stages, micro_batches)
    pairs = {"send_activation": "receive_activation", "receive_gradient": "send_gradient"}
    for mine, theirs in zip(here, there, strict=True):
        expected = {(pairs[i.action], i.micro_batch) for i in mine if i.action in pairs}
        assert expected == {
            (i.action, i.micro_batch) for i in theirs if i.action in set(pairs.values())
        }


def test_the_first_of_four_stages():
    actions = [i.action for i in instructions(0, 4, 4)]
    assert actions[:2] == ["load", "forward"]
    assert actions[-3:] == ["reduce_tied", "reduce", "step"]
    assert num_pipe_buffers(0, 4, 4) == 4
    assert num_pipe_buffers(3, 4, 4) == 2


FILLING = ("load", "receive_activation", "forward")
DRAINING = ("receive_gradient", "backward", "send_gradient", "send_activation")


def walked_peak(pipeline, kept, spikes, first, freed):
    """Peak of a memory in which each kind of instruction has sizes of its own.

    As in DeepSpeed's pipeline engine, a buffer is filled until the forward pass and keeps each
    part until an instruction on it frees that part, or else until the part is replaced; what
    comes back is held outside of the buffers. The first of each kind leaves something for good.
    """
    buffers, outside, resident, seen, top = {}, Counter(), 0, set(), 0
    for instruction in instructions(*pipeline):
        action = instruction.action
        held = buffers.setdefault(instruction.buffer, {})
        if action in FILLING:
            held[action] = kept[action]
        elif action in DRAINING:
            outside[action] = kept[action]
        resident += first[action] * (action not in seen)
        seen.add(action)
        total = resident + outside.total() + sum(sum(b.values()) for b in buffers.values())
        top = max(top, total + spikes[action])
        for part in [part for part in held if freed[part] == action]:
            del held[part]
    return top


ACTIONS = (*FILLING, *DRAINING, "reduce_tied", "reduce", "step")
sizes = st.fixed_dictionaries({action: st.integers(0, 100) for action in ACTIONS})
freed = st.fixed_dictionaries(
    {
        part: st.sampled_from(["never", "send_activation", "backward", "send_gradient"])
        for part in FILLING
    }
)


@given(pipelines, sizes, sizes, sizes, freed)
def test_few_micro_batches_peak_as_high_as_many(pipeline, kept, spikes, first, freed):
    stage, stages, micro_batches = pipeline
    few = sufficient_micro_batches(stage, stages, micro_batches)
    assert few <= max(2, stages - stage) + 2
    short = walked_peak((stage, stages, few), kept, spikes, first, freed)
    assert short == walked_peak(pipeline, kept, spikes, first, freed)
