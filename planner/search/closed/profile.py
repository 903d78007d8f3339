"""What a layer's pass allocates, for every micro-batch size at once.

A layer's program makes the same allocations in the same order whatever the micro-batch is, and
each is affine in it: gradients of weights do not grow, everything else does in proportion. So two
runs tell all; but Ulysses copies less of a single sequence, which is then a run of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.activations.run import Pass
from planner.activations.tape import Mark

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

Event = int | Mark


class Gradient(NamedTuple):
    """Of one weight, when it is complete."""

    size_bytes: int
    beside: Ints
    """All that is alive besides, above the start of the backward pass."""
    before: Ints
    """Highest point since the gradient before, this one included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One layer; bytes, one for each micro-batch size. Tops are above the start of their pass."""

    forward_net: Ints
    """What the forward pass leaves: saved tensors and the result, less the layer's input."""
    forward_top: Ints
    backward_net: Ints
    """What the backward pass leaves, gradients of weights left out."""
    backward_top: Ints
    """Each weight's gradient is freed, or added to one that is there, once it is complete."""
    late_top: Ints
    """The same from the first of them on."""
    collecting_top: Ints
    """Gradients of weights stay until the end of the layer."""
    collecting_late_top: Ints
    """The same from the first of them on."""
    early_top: Ints
    """Before the first weight's gradient is complete."""
    gradients: tuple[Gradient, ...]
    """Of weights, in order."""
    after_top: Ints
    """Highest point when all of them are complete."""
    output_bytes: Ints
    held_bytes: Ints
    """Head: logits and loss, which stay when the backward pass is over."""
    input_saved: bool

    @property
    def gradient_bytes(self) -> int:
        """Of all weights of the layer."""
        return sum(gradient.size_bytes for gradient in self.gradients)


def make_profile(
    run: Callable[[int], Pass], sizes: Ints, gradient_bytes: Callable[[int], int]
) -> Profile:
    """Profile a layer for the micro-batches ``sizes``, ascending.

    ``run`` makes its pass of a micro-batch; ``gradient_bytes`` tells of a parameter, as marks
    count them, what its whole gradient takes on this rank.
    """
    one, two = run(1), run(2)
    if len(one.machine.sizes) == len(two.machine.sizes):
        return _profile(one, two, sizes - 1, gradient_bytes)
    many = _profile(two, run(3), sizes[sizes > 1] - 2, gradient_bytes)
    return (
        many if sizes[0] > 1 else _joined(_profile(one, one, sizes[:1] - 1, gradient_bytes), many)
    )


def _joined(left: Profile, right: Profile) -> Profile:
    """The sizes of both, one after the other."""
    merged: dict[str, Any] = {
        each.name: np.concatenate([getattr(left, each.name), getattr(right, each.name)])
        for each in fields(Profile)
        if isinstance(getattr(left, each.name), np.ndarray)
    }
    gradients = tuple(
        Gradient(
            a.size_bytes,
            np.concatenate([a.beside, b.beside]),
            np.concatenate([a.before, b.before]),
        )
        for a, b in zip(left.gradients, right.gradients, strict=True)
    )
    return replace(left, **merged, gradients=gradients)


def _profile(one: Pass, two: Pass, more: Ints, gradient_bytes: Callable[[int], int]) -> Profile:
    """From two passes, the second of one sequence more, those with ``more`` than the first."""

    def affine(first: Ints | int, second: Ints | int) -> Ints:
        base, slope = np.asarray(first), np.asarray(second) - np.asarray(first)
        line: Ints = base[..., None] + slope[..., None] * more
        return line

    forward = affine(_running(one.forward, one), _running(two.forward, two))
    backward = affine(_running(one.backward, one), _running(two.backward, two))
    places = [place for place, event in enumerate(one.backward) if _is_gradient(event)]
    complete = [gradient_bytes(_marked(one.backward[place])) for place in places]
    spikes, collected = np.zeros((2, len(backward), 1), dtype=np.int64)
    for place, size in zip(places, complete, strict=True):
        spikes[place + 1] = size
        collected[place + 1 :] += size
    late = places[0] + 1 if places else len(backward) - 1
    bounds = [0, *(place + 2 for place in places)]
    return Profile(
        forward_net=forward[-1],
        forward_top=forward.max(axis=0),
        backward_net=backward[-1],
        backward_top=(backward + spikes).max(axis=0),
        late_top=(backward + spikes)[late:].max(axis=0),
        collecting_top=(backward + collected).max(axis=0),
        collecting_late_top=(backward + collected)[late:].max(axis=0),
        early_top=backward[: late + (not places)].max(axis=0),
        gradients=tuple(
            Gradient(size, backward[place + 1], (backward + spikes)[start : place + 2].max(axis=0))
            for place, size, start in zip(places, complete, bounds, strict=False)
        ),
        after_top=backward[places[-1] + 1 if places else 0 :].max(axis=0),
        output_bytes=affine(one.output_bytes, two.output_bytes),
        held_bytes=affine(one.held_bytes, two.held_bytes),
        input_saved=one.input_saved,
    )


def _running(events: Sequence[Event], made: Pass) -> Ints:
    """Bytes alive before the first event and after each."""
    sizes = made.machine.sizes
    changes = [0]
    for event in events:
        if isinstance(event, Mark):
            changes.append(0)
        else:
            changes.append(sizes[event] if event > 0 else -sizes[-event])
    return np.cumsum(np.asarray(changes, dtype=np.int64))


def _is_gradient(event: Event) -> bool:
    return isinstance(event, Mark) and event.kind == "gradient"


def _marked(event: Event) -> int:
    assert isinstance(event, Mark)
    (parameter,) = event.parameters
    return parameter
