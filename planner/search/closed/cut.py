"""A whole model as one rank sees its layers, before stages and ZeRO: profiles side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from planner.activations.layers import placed, run_once
from planner.activations.run import Pass
from planner.engines.deepspeed.stage import Run
from planner.engines.elements import SIZES
from planner.layout.cut import embedding_place
from planner.layout.stage import LocalLayer
from planner.search.closed.profile import Ints, Profile, make_profile
from planner.spec.training import Recompute


class Columns(NamedTuple):
    """What the columns of all arrays stand for: every recomputation with every micro-batch."""

    recomputes: tuple[Recompute, ...]
    sizes: Ints

    @property
    def micro_batches(self) -> Ints:
        """The micro-batch of each column."""
        return np.tile(self.sizes, len(self.recomputes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Bytes (layers, columns) of all layers in forward order."""

    forward_net: Ints
    forward_top: Ints
    net: Ints
    """What forward and backward pass leave together, gradients of weights left out."""
    backward_top: Ints
    late_top: Ints
    collecting_top: Ints
    collecting_late_top: Ints
    early_top: Ints
    unsaved: Ints
    """1 where the layer does not save its input."""
    held: Ints
    """(columns): what the head leaves."""
    hidden: Ints
    """(columns): what one layer hands to the next."""
    profiles: tuple[tuple[Profile, ...], ...]
    """By recomputation, then by layer."""


Known = dict[tuple[object, ...], Profile]
"""Profiles that have been made, by all that they depend on."""


def make_layers(run: Run, local: Sequence[LocalLayer], columns: Columns, known: Known) -> Layers:
    """Profile every different layer of a model, once for each recomputation."""
    profiles = [
        _profiles(_with(run, recompute), local, columns, known) for recompute in columns.recomputes
    ]

    def side_by_side(name: str) -> Ints:
        return np.concatenate(
            [np.stack([getattr(each, name) for each in own]) for own in profiles], axis=1
        )

    unsaved = [
        np.repeat([[not each.input_saved] for each in own], len(columns.sizes), axis=1)
        for own in profiles
    ]
    forward_net = side_by_side("forward_net")
    return Layers(
        forward_net=forward_net,
        forward_top=side_by_side("forward_top"),
        net=forward_net + side_by_side("backward_net"),
        backward_top=side_by_side("backward_top"),
        collecting_top=side_by_side("collecting_top"),
        late_top=side_by_side("late_top"),
        collecting_late_top=side_by_side("collecting_late_top"),
        early_top=side_by_side("early_top"),
        unsaved=np.concatenate(unsaved, axis=1).astype(np.int64),
        held=side_by_side("held_bytes")[-1],
        hidden=side_by_side("output_bytes")[0],
        profiles=tuple(map(tuple, profiles)),
    )


def _with(run: Run, recompute: Recompute) -> Run:
    return replace(run, training=replace(run.training, recompute=recompute))


def _profiles(
    run: Run, local: Sequence[LocalLayer], columns: Columns, known: Known
) -> list[Profile]:
    """Layers that run alike are run once; only those with experts depend on who holds which."""
    layers = tuple(layer.placed.layer for layer in local)
    alike = placed(layers, tied=run.model.tied, shares=run.layout.pp == 1)
    layout = run.layout
    cut = (run.training.recompute, layout.tp, layout.sp, layout.pp > 1)
    profiles = []
    for own, (layer, tied, boundary) in zip(local, alike, strict=True):
        routed = any(parameter.routed for parameter in layer.parameters)
        key = (*cut, layout.ep if routed else 1, id(layer), tied, boundary, len(own.parameters))
        if key not in known:
            known[key] = make_profile(
                partial(_pass, run, own, tied, boundary),
                columns.sizes,
                partial(_gradient_bytes, run, own, local[0]),
            )
        profiles.append(known[key])
    return profiles


def _pass(run: Run, own: LocalLayer, tied: bool, boundary: bool, size: int) -> Pass:  # noqa: FBT001 - as `placed` says
    training = replace(run.training, micro_batch_size=size)
    if run.layout.pp > 1:
        training = replace(training, keep_logits=True)
    return run_once(
        own.placed.layer,
        model=run.model,
        training=training,
        layout=run.layout,
        deepspeed=run.deepspeed,
        tied_head=tied,
        boundary=boundary,
        backend=run.backend,
    )


def _gradient_bytes(run: Run, own: LocalLayer, stem: LocalLayer, index: int) -> int:
    """Of a parameter as marks count: after the layer's own, experts one by one or a tied weight."""
    element = SIZES[run.training.precision]
    if index < len(own.places):
        return element * sum(own.parameters[place].numel for place in own.places[index])
    experts = [parameter for parameter in own.parameters if parameter.expert]
    if experts:
        return element * experts[index - len(own.places)].numel
    copied = len(own.parameters) > len(own.places)
    weight = own.parameters[0] if copied else stem.parameters[embedding_place(stem)]
    return element * weight.numel
