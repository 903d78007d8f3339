"""Layers that a `PipelineModule` runs by one call: as a checkpoint of several blocks, or plainly.

``activation_checkpoint_interval`` cuts a stage's layers into chunks of that length; a chunk is a
checkpoint if all its layers are of a checkpointable class, which the blocks are. Line numbers are
of runtime/pipe/module.py of DeepSpeed 0.19.8.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from planner.activations.tape import LayerTape, begun, ended
from planner.model.description import Layer
from planner.spec.deepspeed import DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Training


class Chunk(NamedTuple):
    """Neighbouring layers of a stage."""

    first: int
    last: int
    checkpoint: bool

    @property
    def passes(self) -> list[tuple[int, int]]:
        """First and last layer of each tape: a checkpoint has one."""
        if self.checkpoint:
            return [(self.first, self.last)]
        return [(place, place) for place in range(self.first, self.last + 1)]

    def told(self, training: Training) -> Training:
        """How its blocks run: whole checkpoints alone are recomputed."""
        plain = training.recompute == "full" and not self.checkpoint
        return replace(training, recompute="none") if plain else training


def chunks(
    layers: Sequence[Layer], training: Training, layout: Layout, deepspeed: DeepSpeed
) -> tuple[Chunk, ...]:
    """All layers of a stage in their order (222-233, 379-393); without a pipeline one by one."""
    recomputed = training.recompute == "full"
    keyed = layout.pp > 1 and recomputed
    length = (keyed and deepspeed.pipeline.activation_checkpoint_interval) or 1
    return tuple(
        Chunk(
            first,
            min(first + length, len(layers)) - 1,
            recomputed and all(layer.kind == "block" for layer in layers[first : first + length]),
        )
        for first in range(0, len(layers), length)
    )


def holding_input(tapes: Sequence[LayerTape], input_bytes: int) -> list[LayerTape]:
    """A plain chunk's tapes: the module's variable holds its input until it is over (387-393).

    A head's tape has the loss in it, which comes after; the moment with the logits and the input
    is booked by the engine.
    """
    result = list(tapes)
    first, last = result[0], result[-1]
    if not input_bytes or first is last or first.input_saved:
        return result
    let_go = begun if last.held_bytes else ended
    result[0] = replace(first, forward=ended(first.forward, input_bytes))
    result[-1] = replace(last, forward=let_go(last.forward, -input_bytes))
    return result
