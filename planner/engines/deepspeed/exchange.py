"""What a pipeline stage gets from its neighbours and the data loader, and what it hands on.

`PipelineEngine`, runtime/pipe/engine.py of DeepSpeed 0.19.8; line numbers are of that file.
"""

from dataclasses import dataclass, field

from planner.engines.deepspeed.boundary import Boundary, Cargo
from planner.layout.schedule import Action
from planner.memory.terms import Term
from planner.memory.timeline import Timeline

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
class Exchange:
    """A stage's side of what is sent and received; its buffers stay from one step to the next."""

    boundary: Boundary
    token_bytes: int
    """The token ids of a micro-batch, also its labels."""
    is_first: bool
    is_last: bool
    _buffers: set[bool] = field(default_factory=set)
    """Receive buffers that are there, of cut and of whole tensors. Activations and gradients of the
    same kind share them: one list of buffers serves both (1458-1468)."""
    _met: bool = False
    """Shapes have been sent."""

    def book(self, timeline: Timeline, action: Action, slot: Slot) -> None:
        """Book one instruction that is neither a pass nor the step."""
        match action:
            case "load":
                self._load(timeline, slot)
            case "receive_activation":
                self._receive(timeline, "activation")
                slot.inputs = self.boundary.sent_bytes("activation")  # cloned (1171)
                timeline.add(Term.PIPELINE_BUFFERS, slot.inputs)
            case "receive_gradient":
                self._restore_output(timeline, slot)
                self._receive(timeline, "gradient")
            case "send_activation":
                self._tell_shapes(timeline)
            case _:
                self._send_gradient(timeline, slot)

    def _load(self, timeline: Timeline, slot: Slot) -> None:
        """Token ids on the first stage, labels on the last; the old ones go after (916-960)."""
        if self.is_first:
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
            take_over(timeline, slot.output, self.boundary.whole_bytes)
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
        if self.is_last:
            slot.retained = sent
        else:
            timeline.add(Term.PIPELINE_BUFFERS, -sent)


def gather_input(timeline: Timeline, slot: Slot, boundary: Boundary, *, emptied: bool) -> None:
    """The whole takes the share's place in the slot, and is what the layers get (707-722)."""
    share, slot.inputs = slot.inputs, 0
    timeline.add(Term.TRANSIENT, share)
    boundary.gather(timeline)
    timeline.add(Term.TRANSIENT, -share)
    timeline.add(Term.PIPELINE_BUFFERS, -share)
    if not emptied:
        slot.inputs = boundary.whole_bytes
        take_over(timeline, 0, slot.inputs)


def keep_output(timeline: Timeline, slot: Slot, boundary: Boundary) -> None:
    """As it is; of a cut one a copy of the share, and the whole is emptied (732-748)."""
    slot.output = boundary.sent_bytes("activation")
    if boundary.cut_activation:
        timeline.add(Term.PIPELINE_BUFFERS, slot.output)
        timeline.add(Term.TRANSIENT, -boundary.whole_bytes)
    else:
        take_over(timeline, 0, slot.output)


def take_over(timeline: Timeline, old: int, new: int) -> None:
    """A buffer takes over what was passing; what was in it goes."""
    timeline.add(Term.TRANSIENT, -new)
    timeline.add(Term.PIPELINE_BUFFERS, new - old)
