"""Autograd's graph and engine: what is saved, in which order nodes run, when buffers are freed.

Sources, PyTorch 2.13: torch/csrc/autograd/engine.cpp (ready queue by sequence number, gradients
of accumulated parameters first; saved tensors released when a node has run), input_buffer.cpp
(gradients of a tensor that is used more than once are added up, in place where nobody else holds
the buffer), functions/accumulate_grad.h (the gradient is taken over, not copied).
"""

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Protocol

from planner.activations.eager.tensor import Shape, Tensor, empty, is_dense

if TYPE_CHECKING:
    from planner.activations.eager.machine import Machine

Gradient = Tensor | None
Edge = tuple["Node | Sink", int]
"""What made a tensor, and which of its outputs the tensor is."""


class Held(Protocol):
    """A saved tensor, or what a hook put in its place."""

    def unpack(self) -> Tensor:
        """The tensor."""


class Node:
    """One recorded operation."""

    __slots__ = (
        "backward",
        "edges",
        "facts",
        "inputs",
        "label",
        "machine",
        "num_outputs",
        "saved",
        "seq",
        "term",
    )

    def __init__(
        self,
        machine: "Machine",
        backward: "Callable[..., Any]",
        inputs: Sequence[Gradient],
        facts: Any = None,
    ) -> None:
        self.machine = machine
        self.backward = backward
        self.edges: tuple[Edge | None, ...] = tuple(
            None if tensor is None else tensor.edge for tensor in inputs
        )
        self.inputs: tuple[tuple[Shape, str] | None, ...] = tuple(
            None if tensor is None else (tensor.shape, tensor.dtype) for tensor in inputs
        )
        self.facts = facts
        """What the backward function wants to know besides the saved tensors."""
        self.saved: list[Any] = []
        self.num_outputs = 0
        self.label = machine.label
        self.term = machine.term
        machine.sequence += 1
        self.seq = machine.sequence

    def save(self, *tensors: Tensor | None) -> None:
        """Keep tensors for the backward pass, inputs before the operation runs, outputs after."""
        pack = self.machine.pack
        for tensor in tensors:
            if tensor is None:
                self.saved.append(None)
            elif pack is None:
                self.saved.append(tensor.alias())
            else:
                self.saved.append(pack(tensor))

    def unpack(self) -> list[Any]:
        """The saved tensors in the order of saving."""
        return [
            held if held is None or isinstance(held, Tensor) else held.unpack()
            for held in self.saved
        ]

    def needs(self, index: int) -> bool:
        """Whether anybody wants the gradient of this input."""
        return self.edges[index] is not None


class Sink:
    """Where gradients leave the graph: a parameter, or the input of a layer."""

    __slots__ = ("collect", "edges", "num_outputs", "seq")

    def __init__(self, collect: Callable[[Tensor], None], *, seq: int) -> None:
        self.collect = collect
        self.edges: tuple[Edge | None, ...] = ()
        self.num_outputs = 1
        self.seq = seq


PARAMETER_FIRST = 2**62
"""Accumulating a parameter's gradient comes before every other node that is ready."""


def begin(backward: Callable[..., Any], *inputs: Gradient, facts: Any = None) -> Node | None:
    """A node for an operation, or None when no gradient is recorded."""
    for tensor in inputs:
        if tensor is not None and tensor.edge is not None:
            machine = tensor.storage.machine
            return Node(machine, backward, inputs, facts) if machine.recording else None
    return None


def finish(node: Node | None, output: Tensor) -> Tensor:
    """Tie an output to the node that made it."""
    if node is not None:
        output.edge = (node, node.num_outputs)
        node.num_outputs += 1
    return output


def run_backward(
    root: Edge, gradient: Tensor, waiting: list[tuple[Sink, Tensor]] | None = None
) -> None:
    """Run all nodes behind ``root``; nobody else may hold ``gradient``.

    ``waiting``: gradients of an earlier part of the same pass, which go into the buffers of the
    sinks where they wait for the rest; the list is emptied.
    """
    node = root[0]
    machine = gradient.storage.machine
    machine.recording = False
    missing = _dependencies(node)
    buffers = _taken(waiting)
    buffers[node] = [None] * node.num_outputs
    buffers[node][root[1]] = gradient
    del gradient
    ready: list[tuple[int, int, Any]] = [(-node.seq, 0, node)]
    ticket = 0
    while ready:
        node = heappop(ready)[2]
        edges = node.edges
        outputs = _call(node, buffers)
        for place, edge in enumerate(edges):
            if edge is None:
                continue
            target, port = edge
            missing[target] -= 1
            output, outputs[place] = outputs[place], None
            if output is not None:
                buffer = buffers.get(target)
                if buffer is None:
                    buffer = buffers[target] = [None] * target.num_outputs
                accumulate(buffer, port, output)
            del output
            if not missing[target]:
                ticket += 1
                heappush(ready, (-target.seq, ticket, target))


def _taken(waiting: list[tuple[Sink, Tensor]] | None) -> dict[Any, list[Gradient]]:
    """The buffers of sinks that have a gradient already, which nobody else holds any more."""
    buffers: dict[Any, list[Gradient]] = {}
    while waiting:
        sink, early = waiting.pop()
        buffers[sink] = [early]
    return buffers


def _call(node: Any, buffers: dict[Any, list[Gradient]]) -> list[Gradient]:
    """Run one node; its incoming gradients and its saved tensors are gone afterwards."""
    gradients = buffers.pop(node, None)
    if gradients is None:
        return [None] * len(node.edges)
    if isinstance(node, Sink):
        collected = gradients.pop()
        if collected is not None:
            node.collect(collected)
        return []
    machine = node.machine
    machine.label, machine.term = node.label, node.term
    outputs = list(node.backward(node, *gradients))
    for place, expected in enumerate(node.inputs):
        output = outputs[place]
        if output is not None and expected is not None and output.shape != expected[0]:
            output = outputs[place] = sum_to(output, expected[0])
        if output is not None and expected is not None and output.dtype != expected[1]:
            strides = output.strides if is_dense(output.shape, output.strides) else None
            outputs[place] = empty(machine, output.shape, expected[1], strides)
        output = None
    del gradients
    node.saved, node.facts = [], None
    machine.label, machine.term = "", None
    return outputs


def _dependencies(root: Any) -> dict[Any, int]:
    """How many edges of the graph behind ``root`` lead to each node."""
    counts: dict[Any, int] = {root: 0}
    stack = [root]
    while stack:
        for edge in stack.pop().edges:
            if edge is None:
                continue
            target = edge[0]
            if target in counts:
                counts[target] += 1
            else:
                counts[target] = 1
                stack.append(target)
    return counts


def accumulate(buffer: list[Gradient], port: int, gradient: Tensor) -> None:
    """Add a gradient to a node's buffer.

    Under a Python dispatch mode PyTorch never adds in place (isTensorSubclassLike is then true of
    every tensor), so a ledger sees a third buffer that other runs do not have.
    """
    old = buffer[port]
    if old is None:
        buffer[port] = gradient
        return
    if old.machine.in_place and old.storage.references == 1 and is_dense(old.shape, old.strides):
        return
    strides = old.strides if is_dense(old.shape, old.strides) else None
    buffer[port] = empty(old.machine, old.shape, old.dtype, strides)


def sum_to(gradient: Tensor, shape: Shape) -> Tensor:
    """The gradient of a tensor that was broadcast, reduced to the tensor's own shape."""
    return empty(gradient.machine, shape, gradient.dtype)
