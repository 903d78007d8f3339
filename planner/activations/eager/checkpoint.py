"""Recomputation: ``torch.utils.checkpoint`` without reentry, as transformers switches it on.

The forward pass records the graph but keeps a mark in the place of each saved tensor. The first
node that asks for one has the whole function run again; what it saves is kept until used, and
the run ends as soon as the last tensor is saved. Sources: torch/utils/checkpoint.py
(_checkpoint_without_reentrant_generator, set_checkpoint_early_stop) of PyTorch 2.13;
transformers 5.23 modeling_utils.py:3149 (use_reentrant False). Left out: the state of the random
generators that a checkpoint keeps, 5056 B on the host.
"""

from collections.abc import Callable
from typing import Any
from weakref import ref

from planner.activations.eager.tensor import Tensor


class _Enough(Exception):  # noqa: N818 - not an error: the last saved tensor has been seen
    """Stops the second run."""


class _Held:
    """Stands for a tensor that will be computed again."""

    __slots__ = ("__weakref__", "frame", "place")

    def __init__(self, frame: "_Frame", place: int) -> None:
        self.frame = frame
        self.place = place

    def __del__(self) -> None:
        self.frame.again.pop(self.place, None)

    def unpack(self) -> Tensor:
        if not self.frame.ran:
            self.frame.run_again()
        return self.frame.again.pop(self.place)


class _Frame:
    """One call of a checkpointed function."""

    __slots__ = ("again", "function", "helds", "inputs", "ran", "seen")

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        self.function = function
        self.inputs = tuple(tensor.alias(edge=tensor.edge) for tensor in inputs)
        self.helds: list[ref[_Held]] = []
        self.again: dict[int, Tensor] = {}
        self.ran = False
        self.seen = 0

    def pack(self, tensor: Tensor) -> _Held:
        """In the first run: keep nothing."""
        del tensor
        held = _Held(self, len(self.helds))
        self.helds.append(ref(held))
        return held

    def pack_again(self, tensor: Tensor) -> Tensor:
        """In the second run: keep the tensor for the node that waits for it."""
        place = self.seen
        self.seen += 1
        kept = tensor.alias()
        if self.helds[place]() is not None:
            self.again[place] = kept
        if self.seen == len(self.helds):
            raise _Enough
        return kept

    def run_again(self) -> None:
        """Run the function for what it saves."""
        self.ran = True
        machine = self.inputs[0].machine
        outer = machine.pack, machine.recording, machine.label, machine.term
        first = len(machine.sizes)
        machine.pack, machine.recording = self.pack_again, True
        try:
            self.function(*self.inputs)
        except _Enough:
            pass
        finally:
            machine.pack, machine.recording, machine.label, machine.term = outer
        machine.settle(first)


def checkpoint(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call ``function`` and keep only its inputs; the rest is computed again in backward."""
    frame: Any = _Frame(function, inputs)
    machine = inputs[0].machine
    outer, machine.pack = machine.pack, frame.pack
    try:
        return function(*inputs)
    finally:
        machine.pack = outer
