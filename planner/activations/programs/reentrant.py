"""Recomputation by an autograd function of its own, as DeepSpeed and Megatron do it.

The function runs without a graph and only its inputs are kept; backward runs it again to the end,
then goes back through that graph. Unlike ``torch.utils.checkpoint`` without reentry the output
exists once more during backward. Sources: DeepSpeed 0.19.8,
runtime/activation_checkpointing/checkpointing.py:562 (``CheckpointFunction``), which pipelines use
(``activation_checkpoint_interval``); Megatron-LM, core/tensor_parallel/random.py.
"""

from collections.abc import Callable

from planner.activations.eager.autograd import Node, Sink, begin, finish, run_backward
from planner.activations.eager.tensor import Tensor

Function = Callable[..., Tensor]


def reentrant(function: Function, *inputs: Tensor) -> Tensor:
    """Call ``function`` and keep only its inputs; at least one of them needs a gradient."""
    node = begin(_back, *inputs, facts=function)
    machine = inputs[0].machine
    recording, machine.recording = machine.recording, False
    output = function(*(tensor.alias() for tensor in inputs))
    machine.recording = recording
    if node is not None:
        node.save(*inputs)
    return finish(node, output)


def _back(node: Node, gradient: Tensor) -> list[Tensor | None]:
    """Run forward again, then backward; inputs and output live until both are done."""
    collected: list[Tensor | None] = [None] * len(node.edges)
    inputs = [
        tensor.alias(edge=(_sink(collected, place), 0) if node.needs(place) else None)
        for place, tensor in enumerate(node.unpack())
    ]
    machine = node.machine
    label, term = machine.label, machine.term
    machine.recording = True
    output = node.facts(*inputs)
    edge = output.edge
    assert edge is not None
    run_backward(edge, gradient.again())
    machine.label, machine.term = label, term
    return collected


def _sink(collected: list[Tensor | None], place: int) -> Sink:
    def collect(gradient: Tensor) -> None:
        collected[place] = gradient

    return Sink(collect, seq=0)
