"""The tapes of the plain layers that worker_pipeline.py trains."""

from collections.abc import Callable
from typing import Any

from planner.activations.eager import (
    Machine,
    Sink,
    Tensor,
    embedding,
    empty,
    linear,
    log_softmax,
    nll_loss,
    run_backward,
    to,
    view,
)
from planner.activations.fold import fold
from planner.activations.programs.reentrant import AS_THEY_ARE, Keeping, reentrant
from planner.activations.tape import LayerTape, Segment
from planner.memory.terms import Term


def stem_tape(vocab: int, hidden: int, shape: tuple[int, int], dtype: str) -> LayerTape:
    """An embedding."""
    return _tape(
        ((vocab, hidden),),
        None,
        lambda m, _: embedding(m.parameters["0"], shape),
        dtype=dtype,
        kept=False,
    )


def linear_tape(
    hidden: int,
    shape: tuple[int, int],
    dtype: str,
    *,
    kept: bool,
    recompute: bool,
    keeping: Keeping = AS_THEY_ARE,
) -> LayerTape:
    """``nn.Linear`` without bias; ``kept``: somebody else holds the gradient of its output."""

    def plain(m: Machine, x: Tensor) -> Tensor:
        return linear(x, m.parameters["0"])

    return _tape(
        ((hidden, hidden),),
        (*shape, hidden),
        lambda m, x: (
            reentrant(lambda y: plain(m, y), x, keeping=keeping) if recompute else plain(m, x)
        ),
        dtype=dtype,
        kept=kept,
    )


def head_tape(vocab: int, hidden: int, shape: tuple[int, int], dtype: str) -> LayerTape:
    """A linear layer to logits, and the cross-entropy of their fp32 copies."""
    machine = _machine(((vocab, hidden),), dtype)
    collected: list[Tensor] = []
    entry = machine.external((*shape, hidden), dtype, sink=Sink(collected.append, seq=0))
    index = entry.storage.index
    with machine.booked_as(Term.LOGITS):
        logits = linear(entry, machine.parameters["0"])
        del entry
        wide = view(to(logits, "fp32"), -1, vocab)
        loss = nll_loss(log_softmax(wide), machine.uncounted(shape, "int64"))
        del wide
    held = logits.storage.size + loss.storage.size
    machine.settle()
    saved = index in machine.live
    split = len(machine.events)
    edge = loss.edge
    assert edge is not None
    with machine.booked_as(Term.LOGITS):
        gradient = empty(machine, (), "fp32")
    run_backward(edge, gradient.again())
    end = len(machine.events)
    return LayerTape(
        forward=_folded(machine, 0, split, becomes_saved=machine.sizes[index] if saved else 0),
        backward=_folded(machine, split, end),
        output_bytes=0,
        held_bytes=held,
        input_saved=saved,
    )


def _folded(
    machine: Machine, start: int, end: int, *, becomes_saved: int = 0
) -> tuple[Segment, ...]:
    """Segments whose frees come first, so that no sum on the way exceeds the highest point."""
    segments = fold(
        machine.events[start:end], machine.sizes, machine.terms, becomes_saved=becomes_saved
    )
    return tuple(
        segment._replace(peak=tuple(sorted(segment.peak, key=lambda change: change[1])))
        for segment in segments
    )


def _machine(shapes: tuple[tuple[int, ...], ...], dtype: str) -> Machine:
    machine = Machine(backend="cpu", in_place=False, modules=False)
    for place, shape in enumerate(shapes):
        machine.parameter(str(place), place, shape, dtype)
    return machine


def _tape(
    weights: tuple[tuple[int, ...], ...],
    shape: tuple[int, ...] | None,
    forward: Callable[[Machine, Any], Tensor],
    *,
    dtype: str,
    kept: bool,
) -> LayerTape:
    machine = _machine(weights, dtype)
    collected: list[Tensor] = []
    entry = None
    index = 0
    if shape is not None:
        entry = machine.external(shape, dtype, sink=Sink(collected.append, seq=0))
        index = entry.storage.index
    output = forward(machine, entry)
    del entry
    machine.disown(output)
    machine.settle()
    saved = index in machine.live
    split = len(machine.events)
    edge, size, out_shape = output.edge, output.storage.size, output.shape
    del output
    assert edge is not None
    if kept:
        gradient = machine.external(out_shape, dtype)
        machine.disown(gradient)
        run_backward(edge, gradient.again())
    else:
        run_backward(edge, machine.external(out_shape, dtype))
    end = len(machine.events)
    return LayerTape(
        forward=_folded(machine, 0, split, becomes_saved=machine.sizes[index] if saved else 0),
        backward=_folded(machine, split, end),
        output_bytes=size,
        input_saved=saved,
    )
