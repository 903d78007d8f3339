"""FSDP with full sharding: every block a unit, the rest the root unit.

Source: torch 2.4, torch/distributed/fsdp: _runtime_utils.py (``_unshard``, ``_post_forward``,
``_post_backward_hook``, ``_reduce_grad``), _flat_param.py; torch/optim/adam.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from planner.activations.tape import Segment
from planner.engines.deepspeed.optimizers import state_bytes, temporary_bytes
from planner.engines.elements import FP32_BYTES, SIZES
from planner.engines.whole import WholeRun
from planner.layout.stage import LocalParameter, Stage
from planner.memory.terms import Term
from planner.memory.timeline import Timeline
from planner.model.adapters import PACKED, constants_bytes, stored_bytes
from planner.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(WholeRun):
    """What is planned."""

    sharded_bytes: int
    """Of an element of the shards: 4 where mixed precision keeps them in fp32."""
    replicas: int = 1
    """Groups that hold the same shards: more than one under hybrid sharding."""
    reshard_after_forward: bool = True
    """False: a block stays whole from its forward to its backward pass."""
    reduce_bytes: int | None = None
    """Of an element while gradients are reduced; None: as in the passes."""
    forward_prefetch: bool = False
    """The next block is gathered beside this one in the forward pass, too: FSDP2, whose gathers run
    ahead on a stream of their own (torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py)."""

    @property
    def shards(self) -> int:
        """Over how many devices a parameter is cut."""
        return max(1, self.layout.dp // self.replicas)


def run_stage(run: Run, stage: Stage) -> Timeline:
    """Initialise, take the first step, then another one: ``init``, ``first_*``, rest."""
    timeline = Timeline()
    timeline.phase("init")
    walk = _Walk(run, stage)
    timeline.add(Term.WEIGHTS, walk.resident_bytes)
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
        self.trained = [[p for p in layer.parameters if p.trained] for layer in stage.layers]
        self.whole = [sum(map(self._gathered, layer.parameters)) for layer in stage.layers]
        self.tapes = run.tapes(stage)
        kinds = [layer.placed.layer.kind for layer in stage.layers]
        self.is_unit = [kind == "block" for kind in kinds]
        outside = [place for place, unit in enumerate(self.is_unit) if not unit]
        self.root = sum(self.whole[place] for place in outside)
        self.root_trained = [p for place in outside for p in self.trained[place]]
        self.waiting = 0
        self.lingering = 0
        self.stepped = False

    @property
    def resident_bytes(self) -> int:
        """The rank's share; the constants of four-bit weights are no parameters and stay whole."""
        every = [p for layer in self.layers for p in layer.parameters]
        return sum(map(self._share, every)) + sum(constants_bytes(p.numel, p.stored) for p in every)

    def _share(self, parameter: LocalParameter) -> int:
        """Mixed precision keeps in fp32 what is trained."""
        if parameter.trained:
            return self.shard([parameter])
        return ceil_div(self._gathered(parameter), self.run.shards)

    def _gathered(self, parameter: LocalParameter) -> int:
        """Bytes of the whole tensor as it is computed with; four-bit ones are gathered so."""
        if parameter.stored in PACKED:
            return ceil_div(parameter.numel, 2)
        if parameter.trained and self.run.sharded_bytes > self.size:
            return parameter.numel * self.size
        return stored_bytes(parameter.numel, parameter.stored, self.size)

    def shard(self, parameters: Iterable[LocalParameter]) -> int:
        """Bytes of the rank's share of what is trained."""
        return sum(self._numel(p) * self._element(p) for p in parameters)

    def _numel(self, parameter: LocalParameter) -> int:
        return ceil_div(parameter.numel, self.run.shards)

    def _element(self, parameter: LocalParameter) -> int:
        return self.run.sharded_bytes if parameter.stored == "model" else FP32_BYTES

    def go(self, timeline: Timeline, prefix: str, *, first: bool) -> None:
        """One micro-step. The root unit stays whole from its first use to its gradient."""
        timeline.phase(prefix + "forward")
        if first and self.stepped:
            # The loop drops the gradients of the step before as this one starts.
            timeline.add(Term.OWNED_GRADIENTS, -sum(map(self.shard, self.trained)))
        self._workspace(timeline, prefix, first=first)
        timeline.add(Term.ACTIVATIONS, self.run.batch_bytes)
        timeline.add(Term.GATHERED_WEIGHTS, self.root)
        for place in range(len(self.layers)):
            self._forward(timeline, place)
        timeline.phase(prefix + "backward")
        self._workspace(timeline, prefix, first=first)
        for place in reversed(range(len(self.layers))):
            self._backward(timeline, place, first=first)
        self._reduce(timeline, self.root, self.root_trained, first=first)
        timeline.add(Term.ACTIVATIONS, -self.lingering)
        self.lingering = 0
        timeline.add(Term.LOGITS, -self.tapes[-1].held_bytes)
        timeline.add(Term.ACTIVATIONS, -self.run.batch_bytes)

    def step(self, timeline: Timeline, *, first: bool) -> None:
        """States and temporaries have the shards' dtype; gradients stay to the next step."""
        training = self.run.training
        trained = [p for own in self.trained for p in own]
        for element in {self._element(p) for p in trained}:
            shards = [self._numel(p) for p in trained if self._element(p) == element]
            if first:
                states = (state_bytes(training, numel, element_bytes=element) for numel in shards)
                timeline.add(Term.OPTIMIZER_STATES, sum(states))
            temporaries = temporary_bytes(training, shards) * element // FP32_BYTES
            if temporaries:
                timeline.spike(Term.STEP_COPIES, temporaries)
        self.stepped = True

    def _workspace(self, timeline: Timeline, prefix: str, *, first: bool) -> None:
        if prefix and first:
            self.run.take_workspace(timeline)

    def _forward(self, timeline: Timeline, place: int) -> None:
        """A unit is gathered for its pass."""
        whole = self.whole[place] if self.is_unit[place] else 0
        later = place + 1
        ahead = later < len(self.layers) and self.is_unit[place] and self.is_unit[later]
        beside = self.whole[later] if ahead and self.run.forward_prefetch else 0
        timeline.add(Term.GATHERED_WEIGHTS, whole + beside)
        for segment in self.tapes[place].forward:
            timeline.play(segment.moves)
        gone = whole if self.run.reshard_after_forward else 0
        timeline.add(Term.GATHERED_WEIGHTS, -gone - beside)

    def _backward(self, timeline: Timeline, place: int, *, first: bool) -> None:
        """The next unit is gathered beside this one (``BackwardPrefetch.BACKWARD_PRE``)."""
        whole = self.whole[place] if self.is_unit[place] else 0
        ahead = place > 0 and self.is_unit[place] and self.is_unit[place - 1]
        beside = self.whole[place - 1] if ahead else 0
        if not self.run.reshard_after_forward:
            beside = 0
        timeline.add(Term.GATHERED_WEIGHTS, beside)
        timeline.add(Term.GATHERED_WEIGHTS, whole if self.run.reshard_after_forward else 0)
        for segment in self.tapes[place].backward:
            timeline.play(segment.moves)
            self._arrive(timeline, place, segment)
        if whole and self._lingers(place):
            timeline.add(Term.ACTIVATIONS, self._lingering)
            self.lingering += self._lingering
        if whole:
            self._reduce(timeline, whole, self.trained[place], first=first)
        timeline.add(Term.GATHERED_WEIGHTS, -beside)

    def _lingers(self, place: int) -> bool:
        """A unit with frozen parameters, whose input a hook waits for (`_lingering`)."""
        recomputed = self.run.training.recompute == "full"
        return recomputed and len(self.trained[place]) < len(self.layers[place].parameters)

    @property
    def _lingering(self) -> int:
        """A unit's input and its gradient, which stay until the whole backward pass is over.

        Frozen units are resharded by a hook on their inputs' gradients, which the pass's final
        callback removes (``_register_post_backward_reshard_only_hook``). That both stay is seen in
        published runs of 2, 4 devices; which reference holds them is not known.
        """
        training = self.run.training
        tokens = training.micro_batch_size * training.sequence_length
        return 2 * tokens * self.run.model.hidden_size * self.size

    def _arrive(self, timeline: Timeline, place: int, segment: Segment) -> None:
        """Gradients of a unit's parameters wait for each other."""
        if segment.mark is None or segment.mark.kind != "gradient":
            return
        layer = self.layers[place]
        own = [layer.places[i] for i in segment.mark.parameters if i < len(layer.places)]
        size = sum(self._gathered(layer.parameters[at]) for places in own for at in places)
        self.waiting += size
        timeline.add(Term.GRADIENTS, size)

    def _reduce(
        self, timeline: Timeline, whole: int, trained: list[LocalParameter], *, first: bool
    ) -> None:
        """All of them are copied into the flat gradient, which is reduced to the rank's share."""
        made = sum(map(self._gathered, trained))
        flat = made // self.size * (self.run.reduce_bytes or self.size)
        timeline.add(Term.REDUCE_COPIES, flat)
        timeline.add(Term.GRADIENTS, -min(self.waiting, made))
        self.waiting -= min(self.waiting, made)
        timeline.add(Term.GATHERED_WEIGHTS, -whole)
        share = ceil_div(flat, self.run.shards)
        timeline.add(Term.REDUCE_COPIES, share)
        timeline.add(Term.OWNED_GRADIENTS, self.shard(trained) if first else 0)
        timeline.add(Term.REDUCE_COPIES, -share - flat)
