"""The interface between a layer's operations and the engine that trains it.

A layer's forward and backward pass is a sequence of operations, each of which allocates and
frees. The engine acts only at some points: a module is entered or left (ZeRO-3 gathers and
releases), a parameter's gradient is complete (buckets are filled and reduced). Between two such
points nothing can interfere, so the operations there are folded into one `Segment` that keeps
exactly what matters: the highest point inside, and the change by the end.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from planner.memory.terms import Term
from planner.memory.timeline import falls_first

MarkKind = Literal["enter", "leave", "gradient", "product"]


class Mark(NamedTuple):
    """A point at which the engine acts."""

    kind: MarkKind
    """enter, leave: a module whose own parameters are ``parameters``, in forward or backward; many
    modules own none.
    gradient: the gradient of one parameter is complete and handed to the engine, which counts
    it from here on (the segment before does not contain it).
    product: matrices are multiplied, for the first time in a pass."""
    parameters: tuple[int, ...] = ()
    """Indices into the layer's parameters; one more than there are: the weight of a tied head."""
    inside: tuple[int, ...] | None = ()
    """enter: parameters of the module and of all modules inside; None: of the whole model."""
    backward: bool = False
    """enter, leave: of the module's backward pass. A recomputed forward pass is a forward pass."""


class Segment(NamedTuple):
    """What happens between two marks."""

    peak: tuple[tuple[Term, int], ...]
    """Changes from the segment's start to its highest point, by term."""
    net: tuple[tuple[Term, int], ...]
    """Changes from the segment's start to its end, by term."""
    mark: Mark | None
    """What the engine does at the end; None only after the last operation of a pass."""

    @property
    def moves(self) -> tuple[tuple[int, int], ...]:
        """Changes by term in order: up to the highest point, and on to the end.

        Falls come first on both ways, so that the top is the top.
        """
        down: dict[int, int] = dict(self.net)
        for term, delta in self.peak:
            down[term] = down.get(term, 0) - delta
        return (*falls_first(dict(self.peak)), *falls_first(down))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerTape:
    """One micro-batch through one layer, in a training step; compared as an object.

    Over forward and backward together all terms sum to zero.
    """

    forward: tuple[Segment, ...]
    """With recompute: without autograd, keeping only what the recomputation needs."""
    backward: tuple[Segment, ...]
    """With recompute: the forward pass again, then the backward pass."""
    output_bytes: int
    """The layer's result, which the next layer (or a pipeline's send) takes over."""
    held_bytes: int = 0
    """Head only: the loss, its own gradient and the kept logits, all of `Term.LOGITS`; the tape
    allocates them and the training loop frees them."""
    input_saved: bool = False
    """The layer keeps its input for the backward pass. If not, its forward pass ends by freeing
    it, which is too early where somebody else (a pipeline's buffer) still holds it."""
    firsts: tuple[int, ...] = (0,)
    """For each layer that the tape goes through (most are of one): the number that marks have for
    its first parameter."""


def begun(segments: tuple[Segment, ...], size: int) -> tuple[Segment, ...]:
    """The same pass with so many bytes more saved from its start on."""
    first, *others = segments
    return (
        first._replace(peak=_plus(first.peak, size), net=_plus(first.net, size)),
        *others,
    )


def ended(segments: tuple[Segment, ...], size: int) -> tuple[Segment, ...]:
    """The same pass with so many bytes more saved at its end."""
    *others, last = segments
    return (*others, last._replace(net=_plus(last.net, size)))


def _plus(changes: tuple[tuple[Term, int], ...], size: int) -> tuple[tuple[Term, int], ...]:
    sums = dict(changes)
    sums[Term.ACTIVATIONS] = sums.get(Term.ACTIVATIONS, 0) + size
    return tuple(sums.items())
