"""FSDP with full sharding: every block a unit, the rest the root unit.

Source: torch 2.4, torch/distributed/fsdp: _runtime_utils.py (``_unshard``, ``_post_forward``,
``_post_backward_hook``, ``_reduce_grad``), _flat_param.py; torch/optim/adam.py.
"""

from dataclasses import dataclass

from planner.activations.layers import stage_tapes
from planner.activations.tape import LayerTape, Segment
from planner.engines.deepspeed.optimizers import state_bytes, temporary_bytes
from planner.layout.stage import Stage
from planner.memory.terms import Term
from planner.memory.timeline import Timeline
from planner.model.description import Model
from planner.spec.cluster import Device
from planner.spec.deepspeed import DeepSpeed
from planner.spec.devices import handle_workspace_bytes
from planner.spec.layout import Layout
from planner.spec.training import Training
from planner.units import ceil_div

FP32_BYTES = 4
TOKEN_BYTES = 8
SIZES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is planned."""

    model: Model
    training: Training
    layout: Layout
    device: Device
    micro_steps: int
    sharded_bytes: int
    """Of an element of the shards: 4 where mixed precision keeps them in fp32."""


def run_stage(run: Run, stage: Stage) -> Timeline:
    """Initialise, take the first step, then another one: ``init``, ``first_*``, rest."""
    timeline = Timeline()
    timeline.phase("init")
    walk = _Walk(run, stage)
    timeline.add(Term.WEIGHTS, walk.shard(sum(walk.numels)))
    for prefix in ("first_", ""):
        for micro_step in range(min(run.micro_steps, 2)):
            walk.go(timeline, prefix, first=micro_step == 0)
        timeline.phase(prefix + "step")
        walk.step(timeline, first=bool(prefix))
    return timeline


class _Walk:
    """One rank's passes and steps."""

    def __init__(self, run: Run, stage: Stage) -> None:
        self.run = run
        self.layers = stage.layers
        self.size = SIZES[run.training.precision]
        self.numels = [sum(p.numel for p in layer.parameters) for layer in stage.layers]
        self.tapes = _tapes(run, stage)
        kinds = [layer.placed.layer.kind for layer in stage.layers]
        self.is_unit = [kind == "block" for kind in kinds]
        self.root = sum(n for n, unit in zip(self.numels, self.is_unit, strict=True) if not unit)
        self.waiting = 0
        self.stepped = False

    def shard(self, numel: int) -> int:
        """Bytes of the rank's share."""
        return ceil_div(numel, self.run.layout.dp) * self.run.sharded_bytes

    def go(self, timeline: Timeline, prefix: str, *, first: bool) -> None:
        """One micro-step. The root unit stays whole from its first use to its gradient."""
        tokens = self.run.training.micro_batch_size * self.run.training.sequence_length
        timeline.phase(prefix + "forward")
        if first and self.stepped:
            # The loop drops the gradients of the step before as this one starts.
            timeline.add(Term.OWNED_GRADIENTS, -self.shard(sum(self.numels)))
        self._workspace(timeline, prefix, first=first)
        timeline.add(Term.ACTIVATIONS, 2 * TOKEN_BYTES * tokens)
        timeline.add(Term.GATHERED_WEIGHTS, self.root * self.size)
        for place in range(len(self.layers)):
            self._forward(timeline, place)
        timeline.phase(prefix + "backward")
        self._workspace(timeline, prefix, first=first)
        for place in reversed(range(len(self.layers))):
            self._backward(timeline, place, first=first)
        self._reduce(timeline, self.root, first=first)
        timeline.add(Term.LOGITS, -self.tapes[-1].held_bytes)
        timeline.add(Term.ACTIVATIONS, -2 * TOKEN_BYTES * tokens)

    def step(self, timeline: Timeline, *, first: bool) -> None:
        """States and temporaries have the shards' dtype; gradients stay to the next step."""
        training, per = self.run.training, self.run.sharded_bytes
        shards = [ceil_div(numel, self.run.layout.dp) for numel in self.numels]
        if first:
            states = sum(state_bytes(training, numel) for numel in shards)
            timeline.add(Term.OPTIMIZER_STATES, states * per // FP32_BYTES)
        temporaries = temporary_bytes(training, shards) * per // FP32_BYTES
        if temporaries:
            timeline.spike(Term.STEP_COPIES, temporaries)
        self.stepped = True

    def _workspace(self, timeline: Timeline, prefix: str, *, first: bool) -> None:
        if prefix and first:
            timeline.add(Term.WORKSPACES, handle_workspace_bytes(self.run.device))

    def _forward(self, timeline: Timeline, place: int) -> None:
        """A unit is gathered for its pass."""
        whole = self.numels[place] * self.size if self.is_unit[place] else 0
        timeline.add(Term.GATHERED_WEIGHTS, whole)
        for segment in self.tapes[place].forward:
            _play(timeline, segment)
        timeline.add(Term.GATHERED_WEIGHTS, -whole)

    def _backward(self, timeline: Timeline, place: int, *, first: bool) -> None:
        """The next unit is gathered beside this one (``BackwardPrefetch.BACKWARD_PRE``)."""
        whole = self.numels[place] * self.size if self.is_unit[place] else 0
        ahead = place > 0 and self.is_unit[place] and self.is_unit[place - 1]
        beside = self.numels[place - 1] * self.size if ahead else 0
        timeline.add(Term.GATHERED_WEIGHTS, whole + beside)
        for segment in self.tapes[place].backward:
            _play(timeline, segment)
            self._arrive(timeline, place, segment)
        if whole:
            self._reduce(timeline, self.numels[place], first=first)
        timeline.add(Term.GATHERED_WEIGHTS, -beside)

    def _arrive(self, timeline: Timeline, place: int, segment: Segment) -> None:
        """Gradients of a unit's parameters wait for each other."""
        if segment.mark is None or segment.mark.kind != "gradient":
            return
        layer = self.layers[place]
        own = [layer.places[i] for i in segment.mark.parameters if i < len(layer.places)]
        numel = sum(layer.parameters[at].numel for places in own for at in places)
        self.waiting += numel * self.size
        timeline.add(Term.GRADIENTS, numel * self.size)

    def _reduce(self, timeline: Timeline, numel: int, *, first: bool) -> None:
        """All of them are copied into the flat gradient, which is reduced to the rank's share."""
        flat = numel * self.size
        timeline.add(Term.REDUCE_COPIES, flat)
        timeline.add(Term.GRADIENTS, -min(self.waiting, flat))
        self.waiting -= min(self.waiting, flat)
        timeline.add(Term.GATHERED_WEIGHTS, -flat)
        share = ceil_div(numel, self.run.layout.dp) * self.size
        timeline.add(Term.REDUCE_COPIES, share)
        timeline.add(Term.OWNED_GRADIENTS, self.shard(numel) if first else 0)
        timeline.add(Term.REDUCE_COPIES, -share - flat)


def _tapes(run: Run, stage: Stage) -> tuple[LayerTape, ...]:
    return stage_tapes(
        tuple(layer.placed.layer for layer in stage.layers),
        model=run.model,
        training=run.training,
        layout=run.layout,
        deepspeed=DeepSpeed(),
        backend="cuda",
    )


def _play(timeline: Timeline, segment: Segment) -> None:
    """Up to the segment's highest point, then to its end."""
    rest = dict(segment.net)
    for term, delta in segment.peak:
        rest[term] = rest.get(term, 0) - delta
    for changes in (segment.peak, tuple(rest.items())):
        for term, delta in sorted(changes, key=lambda change: change[1]):
            timeline.add(term, delta)
