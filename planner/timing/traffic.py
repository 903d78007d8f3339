"""Bytes that element-wise operations move, and kernels that are launched: read off the tapes.

A tape (`planner.activations`) knows every tensor that a pass makes. One that no product makes is
written once and read at least once; a backward pass also reads what was saved for it. What products
read and write is part of their own time.
"""

from typing import NamedTuple

from planner.activations.layers import run_once
from planner.activations.run import Pass
from planner.model.description import Layer
from planner.spec.layout import Layout
from planner.timing.shapes import Setting

CORE = "attention.core"
"""The part of a program that selective recomputation runs again."""


class Made(NamedTuple):
    """What a pass makes and launches, for each sequence of its micro-batch."""

    bytes: int
    """Of all tensors that grow with the micro-batch; gradients of weights do not."""
    kernels: int
    """One for each tensor, whatever the micro-batch."""


class Passes(NamedTuple):
    """Of a layer."""

    forward: Made
    backward: Made
    core: Made
    """The part of the forward pass that is attention's core."""
    saved_bytes: int
    """Kept from the forward to the backward pass, for each sequence."""


def made_by_passes(layer: Layer, setting: Setting, layout: Layout) -> Passes:
    """The difference between the layer's programs for two sequences and for one."""
    one, two = (_run(layer, setting, layout, size) for size in (1, 2))
    forward, backward, core, saved = (
        Made(high.bytes - low.bytes, high.kernels)
        for low, high in zip(_made(one), _made(two), strict=True)
    )
    return Passes(forward, backward, core, saved.bytes)


def moved_bytes(made: int, by_products: int, saved: int = 0) -> int:
    """``2 (made - by products) + saved``."""
    return 2 * max(0, made - by_products) + saved


def _run(layer: Layer, setting: Setting, layout: Layout, size: int) -> Pass:
    return run_once(
        layer,
        model=setting.model,
        training=setting.of_micro_batch(size),
        layout=layout,
        deepspeed=setting.deepspeed,
    )


def _made(run: Pass) -> tuple[Made, Made, Made, Made]:
    machine = run.machine
    forward = [event for event in run.forward if isinstance(event, int) and event > 0]
    backward = [event for event in run.backward if isinstance(event, int) and event > 0]
    core = [event for event in forward if machine.labels[event].startswith(CORE)]
    sums = [Made(sum(machine.sizes[i] for i in each), len(each)) for each in (forward, backward)]
    inside = Made(sum(machine.sizes[i] for i in core), len(core))
    saved = Made(sum(machine.sizes[i] for i in run.saved), len(run.saved))
    return sums[0], sums[1], inside, saved
