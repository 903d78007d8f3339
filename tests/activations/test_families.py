"""Every family of the catalogue has tapes whose sums close, with and without recomputation."""

from functools import cache
from pathlib import Path

import pytest

from planner.activations.layers import layer_tape, placed, saved_by_component
from planner.activations.tape import LayerTape
from planner.memory.terms import Term
from planner.model import catalogue
from planner.model.description import Layer, Model
from planner.model.load import load_model
from planner.spec.deepspeed import DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Recompute, Training


@cache
def models() -> tuple[Model, ...]:
    """The smallest model of each family."""
    found: dict[str, Model] = {}
    for entry in catalogue.entries():
        model = load_model(entry.name, folder=Path())
        known = found.get(model.family)
        if known is None or model.num_parameters < known.num_parameters:
            found[model.family] = model
    return tuple(found.values())


def training(recompute: Recompute) -> Training:
    """Two short sequences."""
    return Training(sequence_length=64, micro_batch_size=2, recompute=recompute)


def kinds(model: Model) -> list[tuple[Layer, bool, bool]]:
    """Each distinct layer at its place, tied rules included."""
    layers = tuple(one.layer for one in model.placed())
    return list({(id(one[0]), *one[1:]): one for one in placed(layers, tied=model.tied)}.values())


def tape(
    model: Model, one: tuple[Layer, bool, bool], recompute: Recompute, *, modules: bool
) -> LayerTape:
    """The tape of a layer on one device."""
    return layer_tape(
        one[0],
        model=model,
        training=training(recompute),
        layout=Layout(dp=1),
        deepspeed=DeepSpeed(),
        tied_head=one[1],
        boundary=one[2],
        modules=modules,
    )


def marks(of: LayerTape) -> list[int]:
    """Parameters in the order in which their gradients are complete."""
    return [
        parameter
        for segment in of.backward
        if segment.mark is not None and segment.mark.kind == "gradient"
        for parameter in segment.mark.parameters
    ]


@pytest.mark.parametrize("family", [model.family for model in models()])
@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("modules", [False, True])
def test_each_parameter_gets_one_gradient(family, recompute, modules):
    model = next(one for one in models() if one.family == family)
    for one in kinds(model):
        layer = one[0]
        got = marks(tape(model, one, recompute, modules=modules))
        wanted = [
            index
            for index, parameter in enumerate(layer.parameters)
            if parameter.component != "vision"
        ]
        assert sorted(got) == wanted, layer.kind


@pytest.mark.parametrize("family", [model.family for model in models()])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_saved_bytes_of_a_whole_model_are_all_freed(family, recompute):
    model = next(one for one in models() if one.family == family)
    layers = tuple(one.layer for one in model.placed())
    total = dict.fromkeys(Term, 0)
    held = 0
    for one in placed(layers, tied=model.tied):
        made = tape(model, one, recompute, modules=False)
        held += made.held_bytes
        for segment in (*made.forward, *made.backward):
            for term, change in segment.net:
                total[term] += change
    total[Term.LOGITS] -= held
    assert {term.label: change for term, change in total.items() if change} == {}


@pytest.mark.parametrize("family", [model.family for model in models()])
def test_recomputation_never_saves_more(family):
    model = next(one for one in models() if one.family == family)
    for block in {id(one.layer): one.layer for one in model.blocks}.values():
        plain, again = (
            sum(
                saved_by_component(
                    block,
                    model=model,
                    training=training(recompute),
                    layout=Layout(dp=1),
                    deepspeed=DeepSpeed(),
                ).values()
            )
            for recompute in ("none", "full")
        )
        assert again < plain
