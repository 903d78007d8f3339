"""Activation checkpoints whose memory depends on the checkpoints before them.

``contiguous_memory_optimization`` makes room for all at the first; ``cpu_checkpointing`` without
partitions keeps the newest on the device while older ones go. Both are booked for one stage. Line
numbers are of runtime/activation_checkpointing of DeepSpeed 0.19.8.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.activations.eager import Backend
from planner.activations.programs.keeping import checkpoints_by_function, keeping
from planner.activations.tape import LayerTape, begun, ended
from planner.layout.stage import Stage
from planner.spec.deepspeed import DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Training

ON_DEVICE = 2
"""Inputs that the host's engine still holds: the newest, and the one that is being copied
(offload_activations.py:99 ``keep_last_count``, 151 ``_reap_forward_stash``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one stage and micro-batch."""

    count: int
    input_bytes: int
    """Of each checkpoint's input."""
    training: Training
    layout: Layout
    deepspeed: DeepSpeed
    backend: Backend

    @property
    def piece_bytes(self) -> int:
        """What a rank keeps of one with ``partition_activations``."""
        return self.input_bytes // self.layout.tp

    @property
    def _active(self) -> bool:
        return self.count > 0 and checkpoints_by_function(self.training, self.layout)

    @property
    def contiguous(self) -> bool:
        """Room for ``number_checkpoints`` pieces is made on the device."""
        keys = self.deepspeed.activation_checkpointing
        on_host = keeping(self.layout, self.deepspeed, self.backend).on_host
        return self._active and keys.contiguous_memory_optimization and not on_host

    @property
    def leaving(self) -> bool:
        """Whole inputs go to the host, copied beside the computation."""
        keys = self.deepspeed.activation_checkpointing
        return self._active and keys.cpu_checkpointing and not keys.partition_activations

    def host_bytes(self, in_flight: int) -> int:
        """Bytes on the host at the highest, with so many micro-batches on their way."""
        if self.leaving:
            return max(0, self.count - 1) * self.input_bytes
        on_host = keeping(self.layout, self.deepspeed, self.backend).on_host
        if not (self._active and on_host):
            return 0
        keys = self.deepspeed.activation_checkpointing
        pieces = self.count * in_flight
        if keys.contiguous_memory_optimization:
            pieces = max(pieces, keys.number_checkpoints or 0)
        return pieces * self.piece_bytes


def arranged(
    tapes: Sequence[LayerTape], stage: Stage, checkpoints: Checkpoints
) -> tuple[LayerTape, ...]:
    """The tapes with what depends on a checkpoint's place among the others."""
    result = list(tapes)
    blocks = [i for i, layer in enumerate(stage.layers) if layer.placed.layer.kind == "block"]
    for number, place in enumerate(blocks):
        if checkpoints.contiguous:
            result[place] = _with_room(result[place], number, checkpoints)
        elif checkpoints.leaving:
            result[place] = _leaving(result[place], number, checkpoints)
    return tuple(result)


def _with_room(tape: LayerTape, number: int, checkpoints: Checkpoints) -> LayerTape:
    """The first makes room for all, in pieces; the first that is used gives up what is left over.

    Source: checkpointing.py:401-428, 668-683. The piece that each tape books is in that room.
    """
    piece = checkpoints.piece_bytes
    room = checkpoints.deepspeed.activation_checkpointing.number_checkpoints or 0
    made = room * piece if number == 0 else 0
    tape = replace(tape, forward=begun(tape.forward, made - piece))
    if number < checkpoints.count - 1:
        return tape
    return replace(tape, backward=begun(tape.backward, (checkpoints.count - room) * piece))


def _leaving(tape: LayerTape, number: int, checkpoints: Checkpoints) -> LayerTape:
    """The input before the last leaves the device, and comes back when it is used."""
    size = checkpoints.input_bytes
    if number >= ON_DEVICE:
        tape = replace(tape, forward=ended(tape.forward, -size))
    if number < checkpoints.count - ON_DEVICE:
        tape = replace(tape, backward=begun(tape.backward, size))
    return tape
