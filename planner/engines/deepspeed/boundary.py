"""What goes from one pipeline stage to the next: hidden states and gradients, whole or cut.

Between tensor-parallel ranks, which all have the same, ``pipe_partitioned`` and
``grad_partitioned`` let each send its share, which the receivers gather. Line numbers are of
runtime/pipe/engine.py of DeepSpeed 0.19.8, where not of its runtime/utils.py.
"""

from dataclasses import dataclass
from typing import Literal

from planner.memory.terms import Term
from planner.memory.timeline import Timeline
from planner.spec.deepspeed import DeepSpeed
from planner.spec.layout import Layout

NUM_DIMS = 3
"""Of hidden states: (B, S, H)."""

Cargo = Literal["activation", "gradient"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """The tensor that two neighbouring stages exchange, in bytes on each rank."""

    whole_bytes: int
    parts: int
    """Tensor-parallel ranks, which divide it."""
    cut_activation: bool
    cut_gradient: bool

    def is_cut(self, cargo: Cargo) -> bool:
        """It is sent as a share, with the numbers that tell how it was cut."""
        return self.cut_activation if cargo == "activation" else self.cut_gradient

    def sent_bytes(self, cargo: Cargo) -> int:
        """The message: all of it, or a share and 1 + D + 2 + t + 1 int64 (utils.py:743-749)."""
        if not self.is_cut(cargo):
            return self.whole_bytes
        return self.whole_bytes // self.parts + 8 * (1 + NUM_DIMS + 2 + self.parts + 1)

    def gather(self, timeline: Timeline) -> None:
        """``PartitionedTensor.full``: gathered flat, then copied, and the copy stays (721-732)."""
        timeline.spike(Term.TRANSIENT, 2 * self.whole_bytes)
        timeline.add(Term.TRANSIENT, self.whole_bytes)


def boundary(layout: Layout, deepspeed: DeepSpeed, whole_bytes: int) -> Boundary:
    """Both are cut if there is anybody to share them with, unless the keys say no (137-138)."""
    shared = layout.tp > 1
    return Boundary(
        whole_bytes=whole_bytes,
        parts=layout.tp,
        cut_activation=shared and deepspeed.pipeline.pipe_partitioned,
        cut_gradient=shared and deepspeed.pipeline.grad_partitioned,
    )
