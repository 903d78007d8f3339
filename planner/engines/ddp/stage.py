"""A whole model on each device: weights, gradients and optimizer states of one dtype.

Source: torch 2.13, torch/optim/adam.py (``_multi_tensor_adam``), torch/csrc/autograd/functions/
accumulate_grad.h, torch/csrc/distributed/c10d/reducer.cpp (``initialize_buckets``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from planner.activations.tape import LayerTape, Segment
from planner.engines.deepspeed.optimizers import state_bytes, temporary_bytes
from planner.engines.elements import FP32_BYTES, SIZES
from planner.engines.whole import WholeRun
from planner.layout.stage import LocalLayer, LocalParameter, Stage
from planner.memory.terms import Term
from planner.memory.timeline import Timeline
from planner.model.adapters import stored_bytes
from planner.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(WholeRun):
    """What is planned."""

    state_shards: int = 1
    """Devices that share the optimizer's states, and so have no buckets of their own to reduce:
    ZeRO-1 and ZeRO-2 where few parameters are trained."""


def run_stage(run: Run, stage: Stage) -> Timeline:
    """Initialise, take the first step, then another one: ``init``, ``first_*``, rest."""
    size = SIZES[run.training.precision]
    parameters = [p for layer in stage.layers for p in layer.parameters]
    trained = [p for p in parameters if p.trained]
    timeline = Timeline()
    timeline.phase("init")
    timeline.add(Term.WEIGHTS, sum(stored_bytes(p.numel, p.stored, size) for p in parameters))
    if run.layout.dp > 1 and run.state_shards == 1:
        timeline.add(Term.BUCKETS, sum(stored_bytes(p.numel, p.stored, size) for p in trained))
    tapes = run.tapes(stage)
    for prefix in ("first_", ""):
        for micro_step in range(min(run.micro_steps, 2)):
            _pass(timeline, run, prefix, tapes, stage.layers, first=micro_step == 0)
        timeline.phase(prefix + "step")
        _step(timeline, run, trained, first=bool(prefix))
    return timeline


def _pass(
    timeline: Timeline,
    run: Run,
    prefix: str,
    tapes: Sequence[LayerTape],
    layers: Sequence[LocalLayer],
    *,
    first: bool,
) -> None:
    """Forward and backward; what the loop holds of the output goes after the backward pass."""
    started = prefix == "" or not first
    for forward in (True, False):
        timeline.phase(prefix + ("forward" if forward else "backward"))
        if not started:
            run.take_workspace(timeline)
        if forward:
            timeline.add(Term.ACTIVATIONS, run.batch_bytes)
        pairs = list(zip(tapes, layers, strict=True))
        for tape, layer in pairs if forward else reversed(pairs):
            kept = _Kept(layer, SIZES[run.training.precision] if first else 0)
            _play(timeline, tape.forward if forward else tape.backward, kept)
    timeline.add(Term.LOGITS, -tapes[-1].held_bytes)
    timeline.add(Term.ACTIVATIONS, -run.batch_bytes)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Gradients of a layer stay from the first micro-step on; later ones are added in place."""

    layer: LocalLayer
    element_bytes: int

    def size(self, parameters: tuple[int, ...]) -> int:
        """Bytes that arrive; a tied head's gradient comes with the embedding's."""
        arrived = [
            self.layer.parameters[place]
            for index in parameters
            if index < len(self.layer.places)
            for place in self.layer.places[index]
        ]
        if not self.element_bytes:
            return 0
        return sum(stored_bytes(p.numel, p.stored, self.element_bytes) for p in arrived)


def _play(timeline: Timeline, segments: tuple[Segment, ...], kept: _Kept) -> None:
    """Up to each segment's highest point, to its end, and on to the gradient that is complete."""
    for segment in segments:
        timeline.play(segment.moves)
        if segment.mark is not None and segment.mark.kind == "gradient":
            timeline.add(Term.GRADIENTS, kept.size(segment.mark.parameters))


def _wide(parameter: LocalParameter) -> bool:
    """Of fp32 whatever the model's precision is."""
    return parameter.stored != "model"


def _step(
    timeline: Timeline, run: Run, parameters: Sequence[LocalParameter], *, first: bool
) -> None:
    """States appear in the first step; the square roots of ``foreach`` pass; gradients go.

    States and temporaries have the parameters' dtype; ``foreach`` takes a dtype after the other.
    """
    training = run.training
    for wide in (False, True):
        whole = [p.numel for p in parameters if _wide(p) == wide]
        numels = [ceil_div(numel, run.state_shards) for numel in whole]
        size = FP32_BYTES if wide else SIZES[training.precision]
        if first:
            states = (state_bytes(training, numel, element_bytes=size) for numel in numels)
            timeline.add(Term.OPTIMIZER_STATES, sum(states))
        temporaries = temporary_bytes(training, numels) * size // FP32_BYTES
        if temporaries:
            timeline.spike(Term.STEP_COPIES, temporaries)
        timeline.add(Term.GRADIENTS, -sum(whole) * size)
