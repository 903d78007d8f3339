"""A pipeline stage's walk on plain tapes, against sums done by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.activations.tape import LayerTape, Mark, Segment
from planner.engines.deepspeed.boundary import boundary
from planner.engines.deepspeed.entry import Entry
from planner.engines.deepspeed.exchange import META_BYTES
from planner.engines.deepspeed.pipeline import PipelineWalk, pipeline_walk
from planner.engines.deepspeed.walk import Handles
from planner.engines.deepspeed.zero12 import zero12
from planner.layout.schedule import instructions
from planner.layout.stage import LocalLayer, LocalParameter, Stage
from planner.memory.terms import Term
from planner.memory.timeline import PartitionIndex, PhasePeak, Timeline
from planner.model.description import Layer, Placed
from planner.spec.training import Training
from tests.engines.drive import make_setup

BOUNDARY = 1000
SAVED = 70_000
LOGITS = 400_000
TOKENS = 8 * 3 * 5
WEIGHT = (4, 8)


def tape(*, first: bool = False, last: bool = False, kept: bool = False) -> LayerTape:
    """A layer that keeps `SAVED` and not its input; the last one makes logits and a loss.

    ``kept``: somebody else holds the input.
    """
    made = LOGITS if last else BOUNDARY
    term = Term.LOGITS if last else Term.TRANSIENT
    taken = () if first or kept else ((Term.TRANSIENT, -BOUNDARY),)
    returned = 0 if first else BOUNDARY
    product = Segment((), (), Mark("product"))
    return LayerTape(
        forward=(
            product,
            Segment(
                ((Term.ACTIVATIONS, SAVED), (term, made)),
                _summed((Term.ACTIVATIONS, SAVED), (term, made), *taken),
                None,
            ),
        ),
        backward=(
            product,
            Segment(
                ((Term.TRANSIENT, 1),),
                _summed((Term.ACTIVATIONS, -SAVED), (Term.TRANSIENT, returned)),
                Mark("gradient", (0,)),
            ),
        ),
        output_bytes=0 if last else BOUNDARY,
        held_bytes=LOGITS if last else 0,
    )


def _summed(*changes: tuple[Term, int]) -> tuple[tuple[Term, int], ...]:
    sums: dict[Term, int] = {}
    for term, size in changes:
        sums[term] = sums.get(term, 0) + size
    return tuple(sums.items())


def make_walk(index: int, num_stages: int, micro_steps: int, **layout: int) -> PipelineWalk:
    parameter = LocalParameter("w", 32, expert=False, ndim=2)
    layer = LocalLayer(
        placed=Placed(prefix="", layer=Layer(kind="block", parameters=())),
        parameters=(parameter,),
        places=((0,),),
    )
    stage = Stage(index=index, num_stages=num_stages, layers=(layer,), registered=(0,))
    setup = make_setup([WEIGHT], dp=1, stage=1, pp=num_stages, micro_steps=micro_steps)
    training = Training(sequence_length=5, micro_batch_size=3)
    changed = replace(setup.layout, **layout)
    setup = replace(setup, training=training, parameters=(parameter,), layout=changed)
    only = tape(first=index == 0, last=index == num_stages - 1, kept=changed.tp > 1)
    strategy, handles = zero12(setup), Handles()
    sent = boundary(setup.layout, setup.deepspeed, BOUNDARY)
    entry = Entry(stage=stage, setup=setup, boundary=sent)
    return pipeline_walk(entry, [only], strategy, handles)


def fold(timeline: Timeline) -> dict[str, PhasePeak]:
    return {phase.phase: phase for phase in timeline.fold(PartitionIndex(0, 0))}


def two_steps(walk: PipelineWalk) -> dict[str, PhasePeak]:
    timeline = Timeline()
    walk.walk(timeline, "first_")
    walk.walk(timeline)
    return fold(timeline)


STAGES = st.integers(2, 8).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n)))


@given(place=STAGES, micro_steps=st.integers(1, 40), parts=st.sampled_from([2, 4, 8]))
def test_at_rest_a_cut_boundary_has_a_smaller_receive_buffer_and_nothing_else(
    place, micro_steps, parts
):
    whole, cut = (two_steps(make_walk(*place, micro_steps, tp=tp)) for tp in (1, parts))
    shape, bounds = 1 + 3, 2 + parts + 1
    share = BOUNDARY // parts + 8 * (shape + bounds)
    for step in ("first_step", "step"):
        assert whole[step].end_bytes - cut[step].end_bytes == BOUNDARY - share


@given(place=STAGES, micro_steps=st.integers(1, 40))
def test_leaving_out_equal_micro_batches_changes_nothing(place, micro_steps):
    told = two_steps(make_walk(*place, micro_steps))
    whole = make_walk(*place, micro_steps)
    timeline = Timeline()
    for prefix in ("first_", ""):
        for instruction in instructions(*place, micro_steps):
            phase = {"load": "forward", "reduce_tied": "reduce"}.get(
                instruction.action, instruction.action
            )
            if phase.endswith("activation"):
                phase = "forward"
            if phase.endswith("gradient"):
                phase = "backward"
            timeline.phase(prefix + phase)
            whole.execute(timeline, instruction)
    exact = fold(timeline)
    assert {name: phase.peak_bytes for name, phase in told.items()} == {
        name: phase.peak_bytes for name, phase in exact.items()
    }
    assert told["step"].end_terms == exact["step"].end_terms


@given(place=STAGES, micro_steps=st.integers(1, 40))
def test_saved_activations_are_those_of_the_micro_batches_in_flight(place, micro_steps):
    index, num_stages = place
    told = two_steps(make_walk(*place, micro_steps))
    flying = min(num_stages - index, micro_steps)
    tokens = TOKENS * flying if index == 0 else 0
    most = max(phase.terms.get(Term.ACTIVATIONS, 0) for phase in told.values())
    assert most == flying * SAVED + tokens


@given(place=STAGES, micro_steps=st.integers(1, 40))
def test_a_later_step_ends_where_it_began(place, micro_steps):
    walk = make_walk(*place, micro_steps)
    timeline = Timeline()
    for prefix in ("first_", "second_", "third_"):
        walk.walk(timeline, prefix)
    told = fold(timeline)
    assert told["second_step"].end_terms == told["third_step"].end_terms
    assert told["first_step"].end_bytes == told["third_step"].end_bytes


@pytest.mark.parametrize(
    ("index", "micro_steps", "pipeline_bytes", "logits_bytes"),
    [
        pytest.param(0, 1, BOUNDARY + TOKENS, 0, id="first: gradient buffer, token ids"),
        pytest.param(0, 9, BOUNDARY + 4 * TOKENS, 0, id="first: token ids of all its slots"),
        pytest.param(2, 9, BOUNDARY, 0, id="middle: one buffer for both directions"),
        pytest.param(
            3, 1, BOUNDARY + TOKENS + 2 * BOUNDARY, LOGITS, id="last: what one graph leads to"
        ),
        pytest.param(
            3, 9, BOUNDARY + 2 * TOKENS + 4 * BOUNDARY, 2 * LOGITS, id="last: two of everything"
        ),
    ],
)
def test_what_stays_between_steps(index, micro_steps, pipeline_bytes, logits_bytes):
    end = two_steps(make_walk(index, 4, micro_steps))["step"].end_terms
    assert end.get(Term.PIPELINE_BUFFERS, 0) == pipeline_bytes
    assert end.get(Term.LOGITS, 0) == logits_bytes
    assert end.get(Term.ACTIVATIONS, 0) == end.get(Term.TRANSIENT, 0) == 0


def test_a_micro_batch_in_flight_costs_its_input_twice_and_its_output():
    """On a stage that keeps two in flight: both received inputs, one output not yet used up."""
    timeline = Timeline()
    walk = make_walk(1, 3, 6)
    for instruction in instructions(1, 3, 6):
        timeline.phase(f"{instruction.action} {instruction.micro_batch}")
        walk.execute(timeline, instruction)
    told = fold(timeline)
    steady = told["forward 2"]
    # Two slots hold an input and an output each, the third of them is the copy that runs.
    assert steady.terms[Term.PIPELINE_BUFFERS] == BOUNDARY + 2 * BOUNDARY + BOUNDARY
    assert steady.terms[Term.TRANSIENT] == 2 * BOUNDARY
    assert told["send_activation 0"].peak_bytes - told["send_activation 0"].end_bytes == META_BYTES


def test_the_workspaces_of_two_threads_come_with_the_first_products_and_stay():
    walk = make_walk(1, 3, 6)
    walk.handles = Handles(workspace_bytes=5)
    told = two_steps(walk)
    assert told["first_forward"].end_terms[Term.WORKSPACES] == 10
    assert told["step"].end_terms[Term.WORKSPACES] == 10
