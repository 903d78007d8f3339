"""Recomputation: ``torch.utils.checkpoint`` without reentry, as transformers switches it on.

The forward pass records the graph but keeps a mark in the place of each saved tensor. The first
node that asks for one has the whole function run again; what it saves is kept until used, and
the run ends as soon as the last tensor is saved. Sources: torch/utils/checkpoint.py
(_checkpoint_without_reentrant_generator, set_checkpoint_early_stop) of PyTorch 2.13;
transformers 5.23 modeling_utils.py:3149 (use_reentrant False). Left out: the state of the random
generators that a checkpoint keeps, 5056 B on the host.

DeepSpeed's variant: runtime/activation_checkpointing/checkpointing.py:777 of 0.19.8
(``non_reentrant_checkpoint``).

Selective: results of attention and of every other matrix product are kept and not computed again.
Source: torchtitan, models/llama3/infra/parallelize.py (``_apply_op_sac`` recomputes the products of
even count), with create_selective_checkpoint_contexts of torch/utils/checkpoint.py.
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


class _Kept:
    """Results that the second run takes from the first."""

    __slots__ = ("again", "products", "results")

    def __init__(self) -> None:
        self.results: list[Tensor] = []
        self.products = 0
        self.again = False

    def restart(self) -> None:
        """The second run begins."""
        self.again, self.products = True, 0

    def made(self, kind: str, make: Callable[[], Tensor]) -> Tensor:
        """A result of the first run, or a new one."""
        self.products += kind == "mm"
        if kind == "mm" and self.products % 2 == 0:
            return make()
        if self.again:
            return self.results.pop(0)
        result = make()
        self.results.append(result.alias())
        return result


class _Frame:
    """One call of a checkpointed function."""

    __slots__ = ("again", "function", "helds", "inputs", "kept", "ran", "seen", "to_end")

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
        kept: _Kept | None,
        *,
        to_end: bool,
    ) -> None:
        self.function = function
        self.kept = kept
        self.to_end = to_end
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

    def pack_again(self, tensor: Tensor) -> Tensor | None:
        """In the second run: keep the tensor for the node that waits for it."""
        place = self.seen
        self.seen += 1
        kept = tensor.alias()
        if self.helds[place]() is not None:
            self.again[place] = kept
        if self.to_end:
            return None
        if self.seen == len(self.helds):
            raise _Enough
        return kept

    def run_again(self) -> None:
        """Run the function for what it saves."""
        self.ran = True
        machine = self.inputs[0].machine
        outer = machine.pack, machine.recording, machine.label, machine.term, machine.outputs
        first = len(machine.sizes)
        machine.pack, machine.recording = self.pack_again, True
        if self.kept is not None:
            self.kept.restart()
            machine.outputs = self.kept
        output = None
        try:
            output = self.function(*self.inputs)
        except _Enough:
            pass
        finally:
            machine.pack, machine.recording, machine.label, machine.term, machine.outputs = outer
        del output
        if self.to_end:
            self.inputs = ()
        machine.settle(first)


def checkpoint(
    function: Callable[..., Tensor],
    *inputs: Tensor,
    selective: bool = False,
    to_end: bool = False,
) -> Tensor:
    """Call ``function`` and keep only its inputs; the rest is computed again in backward.

    ``selective``: costly results are kept, too. ``to_end``: DeepSpeed's variant, whose second run
    goes on to the result and lets the inputs go when it is over.
    """
    frame: Any = _Frame(function, inputs, _Kept() if selective else None, to_end=to_end)
    machine = inputs[0].machine
    outer, machine.pack = machine.pack, frame.pack
    outputs, machine.outputs = machine.outputs, frame.kept
    try:
        return function(*inputs)
    finally:
        machine.pack, machine.outputs = outer, outputs
