"""The highest points of a step in a pipeline: micro-batches in flight, and what stages exchange.

See `engines.deepspeed.pipeline` and `engines.deepspeed.exchange`. Arrays are (stages, columns).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.engines.deepspeed.boundary import boundary
from planner.engines.elements import TOKEN_BYTES
from planner.search.closed.profile import Ints
from planner.search.closed.stages import Moment, Passes, Stages, passes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A layout's stages, one after the other."""

    stages: Stages
    passes: Passes
    index: Ints
    """(stages, 1)"""
    depth: Ints
    """Most micro-batches in flight."""
    repeats: Ints
    """Whether a forward pass comes with as many in flight after gradients have come."""
    whole: Ints
    """(columns): hidden states as one layer hands them on."""
    sent: Ints
    """(columns): what of them is sent."""
    cuts_activation: bool
    cuts_gradient: bool

    @property
    def follows(self) -> Ints:
        """A stage comes before."""
        return self.index > 0

    @property
    def leads(self) -> Ints:
        """A stage comes after."""
        return self.index < len(self.index) - 1

    @property
    def received(self) -> Ints:
        """Receive buffers: one of each kind, which are cut and whole tensors."""
        differs = self.cuts_activation != self.cuts_gradient
        activation = self.sent if self.cuts_activation else self.whole
        gradient = self.sent if self.cuts_gradient else self.whole
        second = self.leads * (differs | ~self.follows)
        return self.follows * activation + second * gradient

    @property
    def entering(self) -> Ints:
        """What a micro-batch holds of the stage's input; the layers' own account begins after it.

        Whole in the slot, and copied for the layers; of a cut one the slot's is what they get, and
        stays with the slot whatever they do.
        """
        tokens = 2 * TOKEN_BYTES * self.stages.tokens
        kept = self.unsaved if self.cuts_activation else 1
        return np.where(self.follows, self.whole * (1 + kept), tokens)

    @property
    def unsaved(self) -> Ints:
        """1 where the first layer does not save its input."""
        first = [part.start for part in self.stages.parts]
        return self.stages.layers.unsaved[first]

    @property
    def leaving(self) -> Ints:
        """What sending a cut output frees of it."""
        return self.leads * (self.whole - self.sent) if self.cuts_activation else 0 * self.depth

    @property
    def done(self) -> Ints:
        """What a micro-batch holds between its forward and its backward pass."""
        return self.entering + self.passes.saved - self.leaving

    @property
    def returning(self) -> Ints:
        """What a backward pass has besides: the gradient received, gathered, and the output's."""
        if self.cuts_gradient:
            return self.leads * 3 * self.whole
        return self.leads * self.whole + self.leaving


def line(stages: Stages) -> Line:
    """Arrange the stages of a pipeline."""
    layout, deepspeed = stages.run.layout, stages.run.deepspeed
    numbers = boundary(layout, deepspeed, 0)
    whole = stages.layers.hidden
    index = np.arange(layout.pp)[:, None]
    cut = whole // layout.tp + numbers.sent_bytes("activation")
    return Line(
        stages=stages,
        passes=passes_of(stages),
        index=index,
        depth=np.minimum(layout.pp - index, stages.micro_steps),
        repeats=stages.micro_steps > layout.pp - index,
        whole=whole,
        sent=cut if numbers.cut_activation or numbers.cut_gradient else whole,
        cuts_activation=numbers.cut_activation,
        cuts_gradient=numbers.cut_gradient,
    )


def piped(stages: Stages) -> Iterator[Moment]:
    """Every moment that may be a stage's highest."""
    made = line(stages)
    column = stages.column
    base = column("resident") + stages.workspaces + made.received
    gradients = column("gradients") + column("buffers")
    rest = _after_last(made)
    yield Moment("init", column("init_top") + 0 * rest, 0 * rest)
    yield from _forward(made, base, gradients)
    yield from _backward(made, base)
    yield Moment("reduce", base + rest + column("reduce_top"), rest)
    yield Moment("step", base + rest + column("step_top"), rest)


def _forward(made: Line, base: Ints, gradients: Ints) -> Iterator[Moment]:
    """The last micro-batch that comes before a backward pass."""
    others = (made.depth - 1) * made.done
    held = 0 if made.cuts_activation else made.follows * made.unsaved * made.whole
    gathering = made.follows * made.cuts_activation * 4 * made.whole
    entering = made.entering + held
    own = np.maximum(entering + made.passes.forward, gathering)
    own = _with_outputs(made, own, entering)
    yield Moment("forward", base + others + own + made.repeats * gradients, others + own)


def _with_outputs(made: Line, own: Ints, entering: Ints) -> Ints:
    """On the last stage slots hold logits, and the graph of those before, until the head runs."""
    stages = made.stages
    many = stages.micro_steps > 1
    layers, part = stages.layers, stages.parts[-1]
    reached = np.cumsum(layers.forward_net[part.start : part.stop], axis=0)
    begun = reached - layers.forward_net[part.start : part.stop]
    tops = layers.forward_top[part.start : part.stop] + layers.held
    tops[-1] = np.maximum(layers.forward_top[part.stop - 1], 2 * layers.held)
    graph = 2 * made.whole * (1 + many)
    last = entering[-1] + (begun + tops).max(axis=0) + layers.held * many + graph
    return np.concatenate([own[:-1], np.maximum(own[-1], last)[None]])


def _backward(made: Line, base: Ints) -> Iterator[Moment]:
    column, passes = made.stages.column, made.passes
    others = (made.depth - 1) * made.done + _beside_backward(made)
    own = made.entering - made.leaving + made.returning
    first = others + own + np.maximum(passes.early, passes.collecting + column("buffers"))
    early = others + own + passes.early
    yield Moment("backward", base + np.maximum(first, early), first)
    many = made.stages.micro_steps > 1
    fewer = np.where(made.repeats, 0, made.done)
    later = others + own + passes.backward - fewer
    gradients = column("gradients") + column("buffers")
    yield Moment("backward", base + many * (later + gradients), later)
    hook = others + column("gradients") + column("buffers") + column("hook_top")
    yield Moment("backward", base + hook, others)


def _beside_backward(made: Line) -> Ints:
    """On the last stage: the other slot's logits with their graph."""
    many = made.stages.micro_steps > 1
    beside = (made.stages.layers.held + 2 * made.whole) * many
    return np.where(made.leads, 0, beside)


def _after_last(made: Line) -> Ints:
    """What slots hold when all micro-batches are through."""
    slots = 1 + (made.stages.micro_steps > 1)
    outputs = (made.stages.layers.held + 2 * made.whole) * slots
    tokens = 2 * TOKEN_BYTES * made.stages.tokens * slots
    return np.where(made.leads, 0, outputs) + tokens
