"""One optimizer step of a pipeline stage, instruction by instruction.

`PipelineEngine`, runtime/pipe/engine.py of DeepSpeed 0.19.8; line numbers are of that file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from planner.activations.chunks import chunks
from planner.activations.tape import LayerTape, begun, ended
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
    boundary_bytes: int
    """The tensor that one stage sends to the next."""
    token_bytes: int
    """The token ids of a micro-batch, also its labels."""
    slots: list[Slot]
    passing_token_bytes: int = 0
    """The copied token ids, where the stem does not save them."""
    empties_inputs: bool = False
    """The first layer is a checkpoint that keeps a piece of its input and empties the whole."""
    workspace_bytes: int = 0
    """cuBLAS takes it at the first product of the forward and of the backward thread."""
    _workspaces: int = 0
    _receive_buffer: int = 0
    """Shared by activations and gradients: one list of buffers serves both (1458-1468)."""
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
                self._receive(timeline)
                _put(timeline, slot, self.boundary_bytes)
            case "receive_gradient":
                self._receive(timeline)
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

    def _receive(self, timeline: Timeline) -> None:
        """The buffer is made once and kept (1150-1163, 1299-1317, 1458-1468)."""
        if not self._receive_buffer:
            self._receive_buffer = self.boundary_bytes
            timeline.add(Term.PIPELINE_BUFFERS, self._receive_buffer)

    def _tell_shapes(self, timeline: Timeline) -> None:
        """Before the first activation is sent (972-1032)."""
        if not self._met:
            timeline.spike(Term.PIPELINE_BUFFERS, META_BYTES)
        self._met = True

    def _send_gradient(self, timeline: Timeline, slot: Slot) -> None:
        """Drop the activation and its gradient (1136); on the last stage the slot's graph stays."""
        sent = slot.inputs + slot.gradient
        slot.inputs = slot.gradient = 0
        if self._is_last:
            slot.retained = sent
        else:
            timeline.add(Term.PIPELINE_BUFFERS, -sent)

    def _forward(self, timeline: Timeline, buffer: int, micro_batch: int) -> None:
        """A second copy of the input, the layers, and on the last stage the loss (722-815)."""
        slot, first = self.slots[buffer], self.layers[0].tape
        self._start_thread(timeline, 1)
        self.strategy.begin_forward(timeline, micro_batch)
        copied = self.boundary_bytes if self.index else self.passing_token_bytes
        timeline.add(Term.TRANSIENT, copied)
        held = 0 if first.input_saved or self.empties_inputs else copied
        for place, layer in enumerate(self.layers):
            if self._is_last and layer is self.layers[-1]:
                self._drop_outputs(timeline, buffer)
            forward(timeline, layer, self.strategy)
            if place == 0 and self.index:
                # The layer let go of its input, but the engine's variable does not.
                timeline.add(Term.TRANSIENT, held)
        timeline.add(Term.TRANSIENT, -held)
        last = self.layers[-1].tape
        if self._is_last:
            slot.output = last.held_bytes
            self._hold_loss(timeline, buffer)
        else:
            slot.output = last.output_bytes
            timeline.add(Term.TRANSIENT, -slot.output)
            timeline.add(Term.PIPELINE_BUFFERS, slot.output)

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
        backward(timeline, self.layers, self.strategy, micro_batch)
        if not self._is_last:
            # The logits of the last stage stay: it returns before this (821-823).
            timeline.add(Term.PIPELINE_BUFFERS, -slot.output)
            slot.output = 0
        if self.index:
            slot.gradient = self.boundary_bytes
            timeline.add(Term.TRANSIENT, -slot.gradient)
            timeline.add(Term.PIPELINE_BUFFERS, slot.gradient)


def _put(timeline: Timeline, slot: Slot, size: int) -> None:
    """Clone what was received into the slot (1171)."""
    slot.inputs = size
    timeline.add(Term.PIPELINE_BUFFERS, size)


def _keeping_tokens(tape: LayerTape, token_bytes: int) -> LayerTape:
    """The stem keeps the copy of the token ids until its weight's gradient has been computed."""
    used, rest = tape.backward[:1], tape.backward[1:]
    return replace(
        tape,
        forward=begun(tape.forward, token_bytes),
        backward=(*ended(used, -token_bytes), *rest),
    )


def _looks_up_copies(setup: Setup) -> bool:
    """An embedding that is cut by vocabulary saves the places in its own rows, not the tokens."""
    return setup.layout.tp > 1 and setup.training.implementation == "reference"


def _empties_inputs(stage: Stage, setup: Setup) -> bool:
    if not setup.deepspeed.activation_checkpointing.partition_activations:
        return False
    layers = [layer.placed.layer for layer in stage.layers]
    return chunks(layers, setup.training, setup.layout, setup.deepspeed)[0].checkpoint


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
    if stage.index == 0 and not _looks_up_copies(setup):
        tapes = (_keeping_tokens(tapes[0], token_bytes), *tapes[1:])
    buffers = num_pipe_buffers(stage.index, stage.num_stages, setup.micro_steps)
    return PipelineWalk(
        layers=passes(stage, tapes),
        strategy=strategy,
        index=stage.index,
        num_stages=stage.num_stages,
        micro_steps=setup.micro_steps,
        boundary_bytes=boundary_bytes,
        token_bytes=token_bytes,
        slots=[Slot() for _ in range(buffers)],
        passing_token_bytes=token_bytes if _looks_up_copies(setup) else 0,
        empties_inputs=_empties_inputs(stage, setup),
        workspace_bytes=workspace_bytes,
    )
