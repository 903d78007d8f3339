"""From layouts to the seconds of a step."""

from dataclasses import fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.spec.layout import Layout
from planner.timing.breakdown import StepTime
from planner.timing.layer import LayerSeconds, PassSeconds, layer_seconds
from planner.timing.pipeline import boundary_seconds, bubble_seconds
from planner.timing.shapes import Integers, Seconds, Setting, Shapes
from planner.timing.stages import Counts, Divisions, divisions, kinds
from planner.timing.state import state_seconds

Places = NDArray[np.int64]


class Table(NamedTuple):
    """What one micro-batch takes in a layer of each kind; seconds by part of a pass, last dim."""

    forward: Seconds
    """(layouts, kinds, parts)."""
    backward: Seconds
    again: Seconds
    """(layouts, kinds): seconds of what is recomputed."""
    flops: Seconds
    """(layouts, kinds): forward and backward."""
    flops_again: Seconds

    @property
    def seconds(self) -> Seconds:
        """(layouts, kinds): all of it."""
        return np.asarray(self.forward.sum(axis=2) + self.backward.sum(axis=2) + self.again)


def step_time(setting: Setting, shapes: Shapes) -> StepTime:
    """Seconds of one optimizer step of every layout in ``shapes``; arrays of one dim.

    Raises:
        LayoutError: tp or ep does not divide what it cuts.

    """
    shapes = in_columns(shapes)
    divided = divisions(setting, *_distinct(shapes.tp, shapes.pp, shapes.ep, shapes.sp))
    table, m = _table(setting, shapes), np.asarray(shapes.micro_batches)
    slowest = _slowest(divided, table)
    forward, backward = _parts(slowest, table.forward), _parts(slowest, table.backward)
    state = state_seconds(setting, shapes, divided.held, forward.sum(axis=1), backward.sum(axis=1))
    messages = boundary_seconds(setting, shapes)
    every = _sum(divided.total, table.seconds) + shapes.pp * messages
    longest = _sum(slowest, table.seconds) + messages
    passes = dict(zip(PassSeconds._fields, (m[:, None] * (forward + backward)).T, strict=True))
    flops = m * _sum(divided.total, table.flops) / shapes.pp
    return StepTime(
        **{f"{name}_seconds": seconds for name, seconds in passes.items()},
        recompute_seconds=m * _sum(slowest, table.again),
        pipeline_seconds=m * messages,
        bubble_seconds=bubble_seconds(every, longest, shapes.virtual_stages),
        weight_gather_seconds=state.weight_gather,
        gradient_seconds=state.gradient,
        optimizer_seconds=state.optimizer,
        offload_seconds=state.offload,
        model_flops=flops,
        hardware_flops=flops + m * _sum(divided.total, table.flops_again) / shapes.pp,
    )


def _slowest(divided: Divisions, table: Table) -> Counts:
    """Layers of each kind in the stage that takes longest, (layouts, kinds)."""
    stages = np.einsum("nrk,nk->nr", divided.different, table.seconds)
    place = stages.argmax(axis=1)[:, None, None]
    return np.take_along_axis(divided.different, place, axis=1)[:, 0]


def _sum(counts: Counts, each: Seconds) -> Seconds:
    """Over kinds: ``counts`` layers of each, (layouts,)."""
    return np.einsum("nk,nk->n", counts, each)


def _parts(counts: Counts, each: Seconds) -> Seconds:
    """The same by part of a pass, (layouts, parts)."""
    return np.einsum("nk,nkp->np", counts, each)


def in_columns(shapes: Shapes) -> Shapes:
    """The same layouts with an array in every field."""
    columns = np.broadcast_arrays(*(np.atleast_1d(value) for value in shapes.columns()))
    return Shapes(
        **{each.name: column for each, column in zip(fields(Shapes), columns, strict=True)}
    )


def _distinct(*columns: Integers) -> tuple[list[Layout], Places]:
    """The different layouts of tp, pp, ep and sp, and which of them each element has."""
    table = np.stack([np.asarray(column) for column in columns], axis=1)
    rows, which = np.unique(table, axis=0, return_inverse=True)
    layouts = [Layout(dp=ep, tp=tp, pp=pp, ep=ep, sp=sp) for tp, pp, ep, sp in rows.tolist()]
    return layouts, which.ravel()


def _table(setting: Setting, shapes: Shapes) -> Table:
    """Layers are computed once for every cut and every size of micro-batch.

    Beside tp, ep and sp, whether there is a pipeline decides who cuts tensors.
    """
    layouts, which = _distinct(shapes.tp, np.minimum(shapes.pp, 2), shapes.ep, shapes.sp)
    known = kinds(setting.model)
    table = _empty(len(shapes), len(known))
    sizes = np.asarray(shapes.micro_batch_size)
    for place, layout in enumerate(layouts):
        mine = np.flatnonzero(which == place)
        different, back = np.unique(sizes[mine], return_inverse=True)
        for kind, layer in enumerate(known):
            found = layer_seconds(layer, setting, layout, different)
            _fill(table, (mine, kind), found, back)
            if layer.kind == "block":
                _fill_again(table, (mine, kind), found, back, shapes)
    return table


def _empty(layouts: int, known: int) -> Table:
    shape, parts = (layouts, known), len(PassSeconds._fields)
    passes = [np.zeros((*shape, parts)) for _ in range(2)]
    return Table(*passes, *(np.zeros(shape) for _ in range(3)))


def _fill(table: Table, where: tuple[Places, int], found: LayerSeconds, back: Places) -> None:
    """Of the layouts and the kind at ``where``; ``back``: which of the sizes each layout has."""
    table.forward[where] = np.stack(found.forward, axis=1)[back]
    table.backward[where] = np.stack(found.backward, axis=1)[back]
    table.flops[where] = (found.forward_flops + found.backward_flops)[back]


def _fill_again(
    table: Table, where: tuple[Places, int], found: LayerSeconds, back: Places, shapes: Shapes
) -> None:
    """A share of the blocks runs its forward pass again; of the others, attention's core may."""
    share = np.asarray(shapes.recomputed_share)[where[0]]
    core = np.asarray(shapes.recomputes_core)[where[0]] * (1.0 - share)
    table.again[where] = share * found.forward.seconds[back] + core * found.core.seconds[back]
    table.flops_again[where] = share * found.forward_flops[back] + core * found.core_flops[back]
