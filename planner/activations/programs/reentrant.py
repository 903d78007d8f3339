"""Recomputation by an autograd function of its own, as DeepSpeed and Megatron do it.

The function runs without a graph and only its inputs are kept; backward runs it again to the end,
then goes back through that graph. Unlike ``torch.utils.checkpoint`` without reentry the output
exists once more during backward. Sources: DeepSpeed 0.19.8,
runtime/activation_checkpointing/checkpointing.py:562 (``CheckpointFunction``), which pipelines use
(``activation_checkpoint_interval``); Megatron-LM, core/tensor_parallel/random.py. Line numbers
below are of checkpointing.py. Left out: the 0-dim tensor that stands in each emptied input's
place, and its shape on the host, 24 B.
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

from planner.activations.eager.autograd import Node, Sink, begin, finish, run_backward
from planner.activations.eager.tensor import Tensor, empty
from planner.activations.eager.views import view

Function = Callable[..., Tensor]


class Keeping(NamedTuple):
    """How a checkpoint keeps its inputs."""

    parts: int = 0
    """0: as they are. Else as a flat copy of one of so many equal pieces, and the input itself is
    emptied wherever it is held (370-452)."""
    on_host: bool = False
    """The copies go to the host."""


AS_THEY_ARE = Keeping()


class _Checkpoint(NamedTuple):
    function: Function
    keeping: Keeping


def reentrant(function: Function, *inputs: Tensor, keeping: Keeping = AS_THEY_ARE) -> Tensor:
    """Call ``function`` and keep only its inputs; at least one of them needs a gradient."""
    node = begin(_back, *inputs, facts=_Checkpoint(function, keeping))
    machine = inputs[0].machine
    kept = [_kept(tensor, keeping) for tensor in inputs]
    recording, machine.recording = machine.recording, False
    output = function(*(tensor.alias() for tensor in inputs))
    machine.recording = recording
    if node is not None:
        node.save(*kept)
    return finish(node, output)


def _kept(tensor: Tensor, keeping: Keeping) -> Tensor | None:
    """A piece is cloned on the device, then perhaps copied to the host (382-429)."""
    if not keeping.parts:
        return tensor
    piece = empty(tensor.machine, (tensor.numel // keeping.parts,), tensor.dtype)
    return None if keeping.on_host else piece


def _back(node: Node, gradient: Tensor) -> list[Tensor | None]:
    """Run forward again, then backward; inputs and output live until both are done."""
    collected: list[Tensor | None] = [None] * len(node.edges)
    inputs = [
        tensor.alias(edge=(_sink(collected, place), 0) if node.needs(place) else None)
        for place, tensor in enumerate(_restored(node))
    ]
    machine = node.machine
    label, term = machine.label, machine.term
    machine.recording = True
    output = node.facts.function(*inputs)
    edge = output.edge
    assert edge is not None
    run_backward(edge, gradient.again())
    machine.label, machine.term = label, term
    return collected


def _restored(node: Node) -> list[Tensor]:
    """The inputs; each piece goes once the whole has been gathered (685-705, 263-303)."""
    keeping: Keeping = node.facts.keeping
    if not keeping.parts:
        return node.unpack()
    pieces = node.unpack()
    node.saved = []
    inputs = []
    for place, expected in enumerate(node.inputs):
        assert expected is not None
        shape, dtype = expected
        piece, pieces[place] = pieces[place], None
        if piece is None:
            piece = empty(node.machine, (prod(shape) // keeping.parts,), dtype)
        # Without other ranks the piece is the whole, seen in its old shape.
        whole = view(piece, *shape) if keeping.parts == 1 else empty(node.machine, shape, dtype)
        del piece
        inputs.append(whole)
        del whole
    return inputs


def _sink(collected: list[Tensor | None], place: int) -> Sink:
    def collect(gradient: Tensor) -> None:
        collected[place] = gradient

    return Sink(collect, seq=0)
