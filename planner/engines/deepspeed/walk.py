"""One optimizer step of a rank without pipeline parallelism, moment by moment."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    workspace_bytes: int
    """cuBLAS takes it at the first product of the forward and of the backward thread."""
    _held: int = 0
    _batch: int = 0
    _workspaces: int = 0

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
        self._start_thread(timeline, 1)
        self.strategy.begin_forward(timeline, micro_step)
        for layer in self.layers:
            forward(timeline, layer, self.strategy)
        timeline.add(Term.LOGITS, -self._held)
        self._held = self.layers[-1].tape.held_bytes

    def _backward(self, timeline: Timeline, micro_step: int) -> None:
        self._start_thread(timeline, 2)
        backward(timeline, self.layers, self.strategy, micro_step)

    def _start_thread(self, timeline: Timeline, threads: int) -> None:
        if self._workspaces < threads:
            self._workspaces = threads
            timeline.add(Term.WORKSPACES, self.workspace_bytes)


def condensed(micro_steps: int) -> list[int]:
    """The micro-steps that differ: the first, the second (as all in the middle), the last."""
    return sorted({0, min(1, micro_steps - 1), micro_steps - 1})


def forward(timeline: Timeline, layer: Pass, strategy: Strategy) -> None:
    """Book a layer's forward pass."""
    key = None if strategy.rhythm(0) is None else ("forward", id(layer.tape))
    timeline.once(key, partial(_go_through, timeline, layer, strategy, backward=False))


def backward(
    timeline: Timeline,
    layers: Sequence[Pass],
    strategy: Strategy,
    micro_step: int,
) -> None:
    """Book a backward pass, from the loss or a received gradient on."""
    rhythm = strategy.rhythm(micro_step)

    def book() -> None:
        strategy.begin_backward(timeline, micro_step)
        for layer in reversed(layers):
            key = ("layer", id(layer.tape), rhythm) if strategy.is_even() else None
            timeline.once(key, partial(_go_through, timeline, layer, strategy, backward=True))
        strategy.end_backward(timeline, micro_step)

    timeline.once(None if rhythm is None else ("backward", rhythm), book)


def _go_through(timeline: Timeline, layer: Pass, strategy: Strategy, *, backward: bool) -> None:
    """Book one layer's pass, handing its marks to the strategy."""
    for terms, deltas, mark in layer.backward if backward else layer.forward:
        timeline.extend(terms, deltas)
        if mark is not None:
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
