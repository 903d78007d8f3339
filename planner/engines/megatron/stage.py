"""One pipeline stage under Megatron-Core, from its initialisation to a step like all later ones."""

from typing import NamedTuple

from planner.activations.mcore import mcore_tape
from planner.activations.tape import LayerTape, Segment
from planner.engines.elements import FP32_BYTES, SIZES, TOKEN_BYTES
from planner.engines.megatron.schedule import passes_in_order, sufficient_micro_batches
from planner.engines.megatron.state import Run, State, with_predictions
from planner.layout.stage import LocalLayer, Stage
from planner.memory.terms import Term
from planner.memory.timeline import Timeline
from planner.units import ceil_div


class Chunk(NamedTuple):
    """Layers that a pass goes through without leaving the rank."""

    tapes: tuple[LayerTape, ...]
    first: bool
    """Holds the embedding."""
    last: bool
    """Holds the head."""


def run_stage(run: Run, stage: Stage) -> Timeline:
    """Initialise, take the first step, then another one: ``init``, ``first_*``, rest."""
    timeline = Timeline()
    timeline.phase("init")
    state = State(run, stage)
    state.initialise(timeline)
    for prefix in ("first_", ""):
        _passes(timeline, run, stage, state, prefix)
        timeline.phase(prefix + "step")
        state.step(timeline)
    return timeline


def _passes(timeline: Timeline, run: Run, stage: Stage, state: State, prefix: str) -> None:
    """Forward and backward passes in the schedule's order."""
    chunks = _chunks(run, stage)
    count = sufficient_micro_batches(run.micro_steps, stage.num_stages)
    order = passes_in_order(stage.index, stage.num_stages, count, len(chunks))
    for forward, place in order:
        timeline.phase(prefix + ("forward" if forward else "backward"))
        if forward:
            state.start_forward(timeline)
            _forward(timeline, run, chunks[place])
        else:
            state.start_backward(timeline)
            _backward(timeline, run, chunks[place])


def _forward(timeline: Timeline, run: Run, chunk: Chunk) -> None:
    """Batch and input in; the output is sent and its data dropped.

    Source: ``deallocate_output_tensor``, core/pipeline_parallel/schedules.py:120-140.
    """
    timeline.add(Term.ACTIVATIONS, _batch_bytes(run))
    if not chunk.first:
        timeline.add(Term.TRANSIENT, _boundary_bytes(run))
    for tape in chunk.tapes:
        _play(timeline, tape.forward)
    if not chunk.last:
        timeline.add(Term.TRANSIENT, -_boundary_bytes(run))


def _backward(timeline: Timeline, run: Run, chunk: Chunk) -> None:
    """The output's gradient in, the input's gradient out."""
    if not chunk.last:
        timeline.add(Term.TRANSIENT, _boundary_bytes(run))
    for tape in reversed(chunk.tapes):
        _play(timeline, tape.backward)
    if not chunk.first:
        timeline.add(Term.TRANSIENT, -_boundary_bytes(run))
    timeline.add(Term.ACTIVATIONS, -_batch_bytes(run))


def _batch_bytes(run: Run) -> int:
    """Tokens, labels and positions as int64, the loss mask as fp32."""
    tokens = run.training.micro_batch_size * run.training.sequence_length
    return tokens * (3 * TOKEN_BYTES + FP32_BYTES)


def _boundary_bytes(run: Run) -> int:
    """Hidden states of a micro-batch, as one stage sends them to the next."""
    cut = run.layout.tp if run.options.sequence_parallel else 1
    tokens = run.training.micro_batch_size * run.training.sequence_length // cut
    return tokens * run.model.hidden_size * SIZES[run.training.precision]


def _play(timeline: Timeline, segments: tuple[Segment, ...]) -> None:
    for segment in segments:
        timeline.play(segment.moves)


def _chunks(run: Run, stage: Stage) -> list[Chunk]:
    """The stage's layers in as many parts as it has virtual stages, the blocks evenly."""
    layers = with_predictions(run, stage)
    blocks = [layer for layer in stage.layers if layer.placed.layer.kind == "block"]
    size = ceil_div(len(blocks), run.options.virtual_stages) or 1
    parts = [blocks[start : start + size] for start in range(0, len(blocks), size)] or [[]]
    parts[0] = [layer for layer in stage.layers if layer.placed.layer.kind == "stem"] + parts[0]
    parts[-1] += [layer for layer in stage.layers if layer.placed.layer.kind == "norm"]
    parts[-1] += layers[len(stage.layers) :]
    parts[-1] += [layer for layer in stage.layers if layer.placed.layer.kind == "head"]
    return [_chunk(run, part) for part in parts]


def _chunk(run: Run, layers: list[LocalLayer]) -> Chunk:
    kinds = {layer.placed.layer.kind for layer in layers}
    return Chunk(tuple(_tape(run, layer) for layer in layers), "stem" in kinds, "head" in kinds)


def _tape(run: Run, layer: LocalLayer) -> LayerTape:
    return mcore_tape(
        layer.placed.layer,
        model=run.model,
        training=run.training,
        layout=run.layout,
        options=run.options,
    )
