"""One optimizer step of a pipeline stage, instruction by instruction.

`PipelineEngine`, runtime/pipe/engine.py of DeepSpeed 0.19.8; line numbers are of that file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from planner.activations.tape import LayerTape
from planner.engines.deepspeed.boundary import Boundary, Cargo, boundary
from planner.engines.deepspeed.entry import Entry
from planner.engines.deepspeed.strategy import Setup, Strategy
from planner.engines.deepspeed.walk import Pass, backward, forward, passes
from planner.layout.schedule import (
    Action,
    Instruction,
    instructions,
    num_pipe_buffers,
    sufficient_micro_batches,
)
from planner.layout.stage import Stage
from planner.memory.terms import Term
from planner.memory.timeline import Timeline

PHASES: dict[Action, str] = {
    "load": "forward",
    "receive_activation": "forward",
    "forward": "forward",
    "send_activation": "forward",
    "receive_gradient": "backward",
    "backward": "backward",
    "send_gradient": "backward",
    "reduce_tied": "reduce",
    "reduce": "reduce",
    "step": "step",
}
"""The phase that an instruction counts to."""

TOKEN_BYTES = 8
"""Token ids and labels are int64."""

META_BYTES = 1024
"""256 int32 that tell the next stage shapes and types, once (engine.py:37 and 982)."""


@dataclass(slots=True)
class Slot:
    """One pipeline buffer; sizes in bytes."""

    inputs: int = 0
    """The received activation, or the loaded token ids."""
    gradient: int = 0
    """Of the received activation."""
    labels: int = 0
    output: int = 0
    retained: int = 0
    """Last stage: activation and gradient of the micro-batch before. The logits in this slot still
    refer to the graph that leads to them, though both were sent and dropped."""


@dataclass(slots=True, kw_only=True)
class PipelineWalk:
    """A stage between its steps: what its buffers hold stays there from one step to the next."""

    layers: tuple[Pass, ...]
    strategy: Strategy
    index: int
    num_stages: int
    micro_steps: int
    boundary: Boundary
    token_bytes: int
    """The token ids of a micro-batch, also its labels."""
    slots: list[Slot]
    passing_token_bytes: int = 0
    """The copied token ids, where the stem does not save them."""
    empties_inputs: bool = False
    """The first layer is a checkpoint that keeps a piece of its input and empties the whole."""
    refills_inputs: bool = False
    """Its backward pass puts the whole back into the slot, and the first tape leaves it there."""
    workspace_bytes: int = 0
    """cuBLAS takes it at the first product of the forward and of the backward thread."""
    _workspaces: int = 0
    _buffers: set[bool] = field(default_factory=set)
    """Receive buffers that are there, of cut and of whole tensors. Activations and gradients of the
    same kind share them: one list of buffers serves both (1458-1468)."""
    _met: bool = False
    """Shapes have been sent."""
    _loss_slot: int = -1
    """Of the micro-batch whose loss the engine holds."""

    def walk(self, timeline: Timeline, prefix: str = "") -> None:
        """Book one optimizer step; ``prefix`` goes before the names of its phases.

        Micro-batches that repeat what others did are left out.
        """
        count = self._sufficient()
        for action, buffer, place in instructions(self.index, self.num_stages, count):
            timeline.phase(prefix + PHASES[action])
            micro_batch = self.micro_steps - 1 if place == count - 1 else place
            self.execute(timeline, Instruction(action, buffer, micro_batch))

    def _sufficient(self) -> int:
        """So many micro-batches as there are different ones, and an equal last slot."""
        count = sufficient_micro_batches(self.index, self.num_stages, self.micro_steps)
        if count < self.micro_steps and self._is_last:
            count += (self.micro_steps - count) % len(self.slots)
        return count

    def execute(self, timeline: Timeline, instruction: Instruction) -> None:
        """Book one instruction."""
        action, buffer, micro_batch = instruction
        match action:
            case "forward":
                self._forward(timeline, buffer, micro_batch)
            case "backward":
                self._backward(timeline, self.slots[buffer], micro_batch)
            case "reduce":
                key = None if self.strategy.rhythm(0) is None else "reduce"
                timeline.once(key, partial(self.strategy.reduce, timeline))
            case "step":
                self.strategy.step(timeline)
            case "reduce_tied":
                """In place (engine.py:256-274)."""
            case _:
                self._exchange(timeline, action, self.slots[buffer])

    def _exchange(self, timeline: Timeline, action: Action, slot: Slot) -> None:
        """What a stage gets from its neighbours and the data loader, and what it hands on."""
        match action:
            case "load":
                self._load(timeline, slot)
            case "receive_activation":
                self._receive(timeline, "activation")
                _put(timeline, slot, self.boundary.sent_bytes("activation"))
            case "receive_gradient":
                self._restore_output(timeline, slot)
                self._receive(timeline, "gradient")
            case "send_activation":
                self._tell_shapes(timeline)
            case _:
                self._send_gradient(timeline, slot)

    @property
    def _is_last(self) -> bool:
        return self.index == self.num_stages - 1

    def _load(self, timeline: Timeline, slot: Slot) -> None:
        """Token ids on the first stage, labels on the last; the old ones go after (916-960)."""
        if self.index == 0:
            old, slot.inputs = slot.inputs, self.token_bytes
        else:
            old, slot.labels = slot.labels, self.token_bytes
        timeline.add(Term.PIPELINE_BUFFERS, self.token_bytes)
        if old:
            timeline.add(Term.PIPELINE_BUFFERS, -old)

    def _receive(self, timeline: Timeline, cargo: Cargo) -> None:
        """The buffer is made once and kept (1150-1163, 1299-1317, 1458-1468)."""
        kind = self.boundary.is_cut(cargo)
        if kind not in self._buffers:
            self._buffers.add(kind)
            timeline.add(Term.PIPELINE_BUFFERS, self.boundary.sent_bytes(cargo))

    def _restore_output(self, timeline: Timeline, slot: Slot) -> None:
        """Whole again before whole gradients come, where shares were sent (1164-1175)."""
        if self.boundary.cut_activation and not self.boundary.cut_gradient:
            self.boundary.gather(timeline)
            _replace(timeline, slot.output, self.boundary.whole_bytes)
            slot.output = self.boundary.whole_bytes

    def _tell_shapes(self, timeline: Timeline) -> None:
        """Before the first activation is sent (972-1032)."""
        if not self._met:
            timeline.spike(Term.PIPELINE_BUFFERS, META_BYTES)
        self._met = True

    def _send_gradient(self, timeline: Timeline, slot: Slot) -> None:
        """Drop the activation and its gradient (1136); on the last stage the slot's graph stays."""
        if self.boundary.cut_gradient:
            timeline.spike(Term.TRANSIENT, self.boundary.sent_bytes("gradient"))
        sent = slot.inputs + slot.gradient
        slot.inputs = slot.gradient = 0
        if self._is_last:
            slot.retained = sent
        else:
            timeline.add(Term.PIPELINE_BUFFERS, -sent)

    def _forward(self, timeline: Timeline, buffer: int, micro_batch: int) -> None:
        """The input, the layers, and on the last stage the loss (700-808)."""
        slot = self.slots[buffer]
        self._start_thread(timeline, 1)
        self.strategy.begin_forward(timeline, micro_batch)
        held = self._take_input(timeline, slot)
        for place, layer in enumerate(self.layers):
            if self._is_last and layer is self.layers[-1]:
                self._drop_outputs(timeline, buffer)
            forward(timeline, layer, self.strategy)
            if place == 0 and self.index:
                # The layer let go of its input, but the engine's variable does not.
                timeline.add(Term.TRANSIENT, held)
        timeline.add(Term.TRANSIENT, -held)
        if self._is_last:
            slot.output = self.layers[-1].tape.held_bytes
            self._hold_loss(timeline, buffer)
        else:
            self._keep_output(timeline, slot)

    def _take_input(self, timeline: Timeline, slot: Slot) -> int:
        """A second copy of it (700-705); returns what the engine's variable holds to the end."""
        if self.index and self.boundary.cut_activation:
            self._gather_input(timeline, slot)
            return 0
        copied = self.boundary.whole_bytes if self.index else self.passing_token_bytes
        timeline.add(Term.TRANSIENT, copied)
        return 0 if self.layers[0].tape.input_saved or self.empties_inputs else copied

    def _gather_input(self, timeline: Timeline, slot: Slot) -> None:
        """The whole takes the share's place in the slot, and is what the layers get (707-722)."""
        share, slot.inputs = slot.inputs, 0
        timeline.add(Term.TRANSIENT, share)
        self.boundary.gather(timeline)
        timeline.add(Term.TRANSIENT, -share)
        timeline.add(Term.PIPELINE_BUFFERS, -share)
        if not self.empties_inputs:
            slot.inputs = self.boundary.whole_bytes
            _replace(timeline, 0, slot.inputs)

    def _keep_output(self, timeline: Timeline, slot: Slot) -> None:
        """As it is; of a cut one a copy of the share, and the whole is emptied (732-748)."""
        slot.output = self.boundary.sent_bytes("activation")
        if self.boundary.cut_activation:
            timeline.add(Term.PIPELINE_BUFFERS, slot.output)
            timeline.add(Term.TRANSIENT, -self.boundary.whole_bytes)
        else:
            _replace(timeline, 0, slot.output)

    def _start_thread(self, timeline: Timeline, threads: int) -> None:
        if self._workspaces < threads:
            self._workspaces = threads
            timeline.add(Term.WORKSPACES, self.workspace_bytes)

    def _drop_outputs(self, timeline: Timeline, buffer: int) -> None:
        """The slot's logits give way to new ones, and their graph if the loss has another (769).

        They go when the new logits are there, before the loss is computed. The head's tape does
        both at once, so the moment with old and new ones is booked here.
        """
        timeline.spike(Term.LOGITS, self.layers[-1].tape.held_bytes)
        slot = self.slots[buffer]
        timeline.add(Term.LOGITS, -slot.output)
        slot.output = 0
        if self._loss_slot != buffer:
            self._drop_graph(timeline, slot)

    def _hold_loss(self, timeline: Timeline, buffer: int) -> None:
        """The engine's loss is this micro-batch's now; the one before lets its graph go (775)."""
        if self._loss_slot == buffer:
            self._drop_graph(timeline, self.slots[buffer])
        self._loss_slot = buffer

    def _drop_graph(self, timeline: Timeline, slot: Slot) -> None:
        timeline.add(Term.PIPELINE_BUFFERS, -slot.retained)
        slot.retained = 0

    def _backward(self, timeline: Timeline, slot: Slot, micro_batch: int) -> None:
        """From the received gradient, or from the loss, to the input's gradient (818-896).

        What is received lies in the receive buffer, so the last layer's tape leaves it alone.
        """
        self._start_thread(timeline, 2)
        gathered = not self._is_last and self.boundary.cut_gradient
        if gathered:
            self.boundary.gather(timeline)  # the output's values, which nobody reads
            self.boundary.gather(timeline)  # its gradient (826-834)
        backward(timeline, self.layers, self.strategy, micro_batch)
        if not self._is_last:
            # The logits of the last stage stay: it returns before this (821-823).
            timeline.add(Term.PIPELINE_BUFFERS, -slot.output)
            slot.output = 0
        if gathered:
            timeline.add(Term.TRANSIENT, -2 * self.boundary.whole_bytes)
        if self.refills_inputs:
            slot.inputs = self.boundary.whole_bytes
            timeline.add(Term.ACTIVATIONS, -slot.inputs)
            timeline.add(Term.PIPELINE_BUFFERS, slot.inputs)
        if self.index:
            slot.gradient = self.boundary.whole_bytes
            _replace(timeline, 0, slot.gradient)


def _replace(timeline: Timeline, old: int, new: int) -> None:
    """A buffer takes over what was passing; what was in it goes."""
    timeline.add(Term.TRANSIENT, -new)
    timeline.add(Term.PIPELINE_BUFFERS, new - old)


def _put(timeline: Timeline, slot: Slot, size: int) -> None:
    """Clone what was received into the slot (1171)."""
    slot.inputs = size
    timeline.add(Term.PIPELINE_BUFFERS, size)


def pipeline_walk(
    stage: Stage,
    tapes: Sequence[LayerTape],
    strategy: Strategy,
    setup: Setup,
    *,
    boundary_bytes: int,
    workspace_bytes: int = 0,
) -> PipelineWalk:
    """A stage before its first step; ``strategy`` has been initialised.

    Args:
        stage: one of at least two.
        tapes: of its layers; the head's holds its logits, any other last one is told that the
            gradient of its output is kept.
        strategy: what DeepSpeed does to parameters and gradients.
        setup: the same that the strategy was built from.
        boundary_bytes: hidden states of a micro-batch, as one stage sends them to the next.
        workspace_bytes: of cuBLAS, for each of two threads.

    """
    training = setup.training
    token_bytes = TOKEN_BYTES * training.micro_batch_size * training.sequence_length
    exchanged = boundary(setup.layout, setup.deepspeed, boundary_bytes)
    entry = Entry(stage=stage, setup=setup, boundary=exchanged)
    buffers = num_pipe_buffers(stage.index, stage.num_stages, setup.micro_steps)
    return PipelineWalk(
        layers=passes(stage, (entry.first_tape(tapes[0], token_bytes), *tapes[1:])),
        strategy=strategy,
        index=stage.index,
        num_stages=stage.num_stages,
        micro_steps=setup.micro_steps,
        boundary=exchanged,
        token_bytes=token_bytes,
        slots=[Slot() for _ in range(buffers)],
        passing_token_bytes=token_bytes if entry.passes_tokens else 0,
        empties_inputs=entry.is_emptied,
        refills_inputs=entry.is_refilled,
        workspace_bytes=workspace_bytes,
    )
