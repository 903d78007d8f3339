"""One optimizer step of a rank without pipeline parallelism, moment by moment."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from typing import NamedTuple

from planner.activations.tape import LayerTape, Mark, Segment
from planner.engines.deepspeed.strategy import Strategy
from planner.layout.cut import embedding_place, offsets
from planner.layout.stage import LocalLayer, Stage
from planner.memory.terms import Term
from planner.memory.timeline import Timeline


class Move(NamedTuple):
    """Changes of one segment in order, up to its highest point and on to its end; then a mark."""

    terms: tuple[int, ...]
    deltas: tuple[int, ...]
    mark: Mark | None


@dataclass(slots=True, kw_only=True)
class Handles:
    """cuBLAS's, one for the forward and one for the backward thread.

    Each takes its workspace from PyTorch's allocator at its first product, and keeps it
    (aten/src/ATen/cuda/CublasHandlePool.cpp of PyTorch 2.13, getCUDABlasLtWorkspace).
    """

    workspace_bytes: int = 0
    _started: set[bool] = field(default_factory=set)

    def are_started(self, *, backward: bool) -> bool:
        """The thread has multiplied before, so that what it does may be repeated."""
        return backward in self._started

    def multiply(self, timeline: Timeline, *, backward: bool) -> None:
        """Matrices are multiplied on a thread."""
        if backward not in self._started:
            self._started.add(backward)
            timeline.add(Term.WORKSPACES, self.workspace_bytes)


class Pass(NamedTuple):
    """One layer of a stage, or some that are recomputed together, as the walk goes through it."""

    tape: LayerTape
    forward: tuple[Move, ...]
    backward: tuple[Move, ...]
    offset: int
    """Index of the layer's first parameter in the optimizer's order."""
    places: tuple[tuple[int, ...], ...]
    """For each parameter that the tape counts: which of the layer's local ones hold it."""


def passes(stage: Stage, tapes: Sequence[LayerTape]) -> tuple[Pass, ...]:
    """The layers of a stage in forward order, each with its tape; several may have one."""
    starts = offsets(stage)
    holds_stem = stage.layers[0].placed.layer.kind == "stem"
    embedding = embedding_place(stage.layers[0]) if holds_stem else 0
    layers = zip(starts, stage.layers, strict=True)
    return tuple(_pass(tape, list(islice(layers, len(tape.firsts))), embedding) for tape in tapes)


def _pass(tape: LayerTape, layers: Sequence[tuple[int, LocalLayer]], embedding: int) -> Pass:
    offset = layers[0][0]
    places: list[tuple[int, ...]] = []
    for first, (start, layer) in zip(tape.firsts, layers, strict=True):
        own = (*layer.places, *_beyond(layer, embedding - start))
        places[first:] = [tuple(place + start - offset for place in at) for at in own]
    return Pass(tape, *_compiled(tape), offset, tuple(places))


def _beyond(layer: LocalLayer, embedding: int) -> Iterator[tuple[int, ...]]:
    """Where the stage has what a tape counts after the layer's own parameters.

    Experts that are apart come one by one. A tied head's weight: its own copy is its first.
    """
    experts = [place for place, parameter in enumerate(layer.parameters) if parameter.expert]
    if experts:
        yield from ((place,) for place in experts)
    else:
        copied = len(layer.parameters) > len(layer.places)
        yield (0,) if copied else (embedding,)


@lru_cache(maxsize=4096)
def _compiled(tape: LayerTape) -> tuple[tuple[Move, ...], tuple[Move, ...]]:
    return _moves(tape.forward), _moves(tape.backward)


def _moves(segments: Sequence[Segment]) -> tuple[Move, ...]:
    return tuple(_move(segment) for segment in segments)


def _move(segment: Segment) -> Move:
    moves = segment.moves
    return Move(tuple(term for term, _ in moves), tuple(delta for _, delta in moves), segment.mark)


@dataclass(slots=True, kw_only=True)
class StepWalk:
    """A rank between its steps: the training loop holds the last output until the next one."""

    layers: tuple[Pass, ...]
    strategy: Strategy
    micro_steps: int
    batch_bytes: int
    """Token ids and labels of a micro-step."""
    handles: Handles = field(default_factory=Handles)
    _held: int = 0
    _batch: int = 0

    def walk(self, timeline: Timeline, prefix: str = "") -> None:
        """Book one optimizer step; ``prefix`` goes before the names of its phases."""
        for micro_step in condensed(self.micro_steps):
            timeline.phase(prefix + "forward")
            self._forward(timeline, micro_step)
            timeline.phase(prefix + "backward")
            self._backward(timeline, micro_step)
        timeline.phase(prefix + "step")
        self.strategy.step(timeline)

    def _forward(self, timeline: Timeline, micro_step: int) -> None:
        """The loop's variables hold the batch and the output before until they get new ones."""
        timeline.add(Term.ACTIVATIONS, self.batch_bytes)
        timeline.add(Term.ACTIVATIONS, -self._batch)
        self._batch = self.batch_bytes
        self.strategy.begin_forward(timeline, micro_step)
        for layer in self.layers:
            forward(timeline, layer, self.strategy, self.handles)
        timeline.add(Term.LOGITS, -self._held)
        self._held = self.layers[-1].tape.held_bytes

    def _backward(self, timeline: Timeline, micro_step: int) -> None:
        backward(timeline, self.layers, self.strategy, self.handles, micro_step)


def condensed(micro_steps: int) -> list[int]:
    """The micro-steps that differ: the first, the second (as all in the middle), the last."""
    return sorted({0, min(1, micro_steps - 1), micro_steps - 1})


def forward(timeline: Timeline, layer: Pass, strategy: Strategy, handles: Handles) -> None:
    """Book a layer's forward pass."""
    alike = strategy.rhythm(0) is not None and handles.are_started(backward=False)
    key = ("forward", id(layer.tape)) if alike else None
    timeline.once(key, partial(_go_through, timeline, layer, strategy, handles, backward=False))


def backward(
    timeline: Timeline,
    layers: Sequence[Pass],
    strategy: Strategy,
    handles: Handles,
    micro_step: int,
) -> None:
    """Book a backward pass, from the loss or a received gradient on."""
    rhythm = strategy.rhythm(micro_step)
    started = handles.are_started(backward=True)

    def book() -> None:
        strategy.begin_backward(timeline, micro_step)
        for layer in reversed(layers):
            alike = strategy.is_even() and handles.are_started(backward=True)
            key = ("layer", id(layer.tape), rhythm) if alike else None
            timeline.once(
                key, partial(_go_through, timeline, layer, strategy, handles, backward=True)
            )
        strategy.end_backward(timeline, micro_step)

    timeline.once(None if rhythm is None or not started else ("backward", rhythm), book)


def _go_through(
    timeline: Timeline, layer: Pass, strategy: Strategy, handles: Handles, *, backward: bool
) -> None:
    """Book one layer's pass, handing its marks to the strategy."""
    for terms, deltas, mark in layer.backward if backward else layer.forward:
        timeline.extend(terms, deltas)
        if mark is None:
            continue
        if mark.kind == "product":
            handles.multiply(timeline, backward=backward)
        else:
            _act(timeline, mark, strategy, layer)


def _act(timeline: Timeline, mark: Mark, strategy: Strategy, layer: Pass) -> None:
    own = _registered(layer, mark.parameters)
    if mark.kind == "gradient":
        for place in _places(layer, mark.parameters):
            strategy.gradient(timeline, layer.offset + place)
    elif mark.kind == "enter":
        inside = None if mark.inside is None else _registered(layer, mark.inside)
        strategy.enter(timeline, own, backward=mark.backward, inside=inside)
    else:
        strategy.leave(timeline, own, backward=mark.backward)


def _registered(layer: Pass, parameters: tuple[int, ...]) -> range:
    """Indices in the optimizer's order: a module's parameters are registered side by side."""
    places = _places(layer, parameters)
    if not places:
        return range(0)
    return range(layer.offset + min(places), layer.offset + max(places) + 1)


def _places(layer: Pass, parameters: tuple[int, ...]) -> list[int]:
    """Which of the layer's own: what transformers fuses has other parameters between its parts."""
    return [place for index in parameters for place in layer.places[index]]
