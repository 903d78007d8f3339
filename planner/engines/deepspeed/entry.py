"""A pipeline stage's input: how its first layer gets it, and what that does to the layer's tape.

Line numbers are of runtime/pipe/engine.py of DeepSpeed 0.19.8, where not of
activation_checkpointing/checkpointing.py.
"""

from dataclasses import dataclass, replace

from planner.activations.chunks import chunks
from planner.activations.tape import LayerTape, begun, ended
from planner.engines.deepspeed.boundary import Boundary
from planner.engines.deepspeed.strategy import Setup
from planner.layout.stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Between what a stage receives, or loads, and its first layer."""

    stage: Stage
    setup: Setup
    boundary: Boundary

    @property
    def is_emptied(self) -> bool:
        """The first layer is a checkpoint that keeps a piece of its input and empties the whole."""
        if not self.setup.deepspeed.activation_checkpointing.partition_activations:
            return False
        layers = [layer.placed.layer for layer in self.stage.layers]
        setup = self.setup
        return chunks(layers, setup.training, setup.layout, setup.deepspeed)[0].checkpoint

    @property
    def is_gathered(self) -> bool:
        """The layer works on what the slot holds, not on a copy: gathered there (711-720)."""
        return self.stage.index > 0 and self.boundary.cut_activation

    @property
    def is_kept(self) -> bool:
        """The slot holds the layer's input until its gradient has been sent."""
        return self.is_gathered and not self.is_emptied

    @property
    def is_refilled(self) -> bool:
        """What a checkpoint has emptied it gathers in place, here in the slot (305)."""
        return self.is_gathered and self.is_emptied

    @property
    def passes_tokens(self) -> bool:
        """An embedding cut by vocabulary saves places in its own rows, not the copied tokens."""
        setup = self.setup
        return setup.layout.tp > 1 and setup.training.implementation == "reference"

    def first_tape(self, tape: LayerTape, token_bytes: int) -> LayerTape:
        """The first layer's tape, with what it keeps of the stage's input."""
        if self.stage.index == 0 and not self.passes_tokens:
            return _keeping_tokens(tape, token_bytes)
        if self.is_refilled:
            return replace(tape, backward=ended(tape.backward, self.boundary.whole_bytes))
        return tape


def _keeping_tokens(tape: LayerTape, token_bytes: int) -> LayerTape:
    """The stem keeps the copy of the token ids until its weight's gradient has been computed."""
    used, rest = tape.backward[:1], tape.backward[1:]
    return replace(
        tape,
        forward=begun(tape.forward, token_bytes),
        backward=(*ended(used, -token_bytes), *rest),
    )
