"""Experts as Megatron-Core runs them: routed, permuted, sent, sorted, multiplied, and back.

Sources: Megatron-LM, core/transformer/moe/router.py, token_dispatcher.py
(``MoEAlltoAllTokenDispatcher``), experts.py (``TEGroupedMLP``), shared_experts.py. Tokens are
spread evenly. Every step makes a new tensor; only the products and the activation keep theirs.
"""

from typing import NamedTuple

from planner.activations.eager import Machine, Tensor, add, begin, empty, finish
from planner.activations.eager.autograd import Node
from planner.activations.programs import megatron_kernels as kernels
from planner.activations.programs.case import Case
from planner.model.description import Moe

Shape = tuple[int, ...]


class Spread(NamedTuple):
    """Over how many ranks experts are spread, and each of them is cut."""

    ep: int
    etp: int


def mixture(m: Machine, case: Case, hidden: Tensor, spread: Spread) -> Tensor:
    """Hidden states (B, S, H) of this rank's tokens in and out."""
    facts = case.mlp
    assert isinstance(facts, Moe)
    batch, length, size = hidden.shape
    count = batch * length * facts.experts_per_token
    received = count * spread.etp
    with m.part("router"):
        weights = _route(m, hidden, facts, [_named(m, case, "router")[0]])
    with m.part("routed_experts"):
        rows = _moved(hidden, (count, size), weights)
        rows = _sent(rows, received, size, spread, facts)
        rows = _experts(m, case, rows, facts, spread)
        rows = _sent(rows, count, size, spread, facts)
        output = _moved(rows, hidden.shape, None)
        del rows, weights
    if facts.shared is None:
        return output
    with m.part("shared_experts"):
        return add(output, _shared(m, case, hidden, facts))


def _route(m: Machine, hidden: Tensor, facts: Moe, weights: list[Tensor]) -> Tensor:
    """Scores of all experts in fp32, and a dense map of the chosen ones' weights."""
    logits = kernels.linear(hidden, weights)
    node = begin(_route_back, logits)
    shape = logits.shape
    scores = empty(m, shape, "fp32")
    chosen = empty(m, shape, "bool")
    if node is not None:
        node.save(scores, chosen)
    del facts
    return finish(node, empty(m, shape, "fp32"))


def _route_back(node: Node, gradient: Tensor) -> list[Tensor]:
    node.unpack()
    expected = node.inputs[0]
    assert expected is not None
    return [empty(node.machine, expected[0], gradient.dtype)]


def _moved(tensor: Tensor, shape: Shape, weights: Tensor | None) -> Tensor:
    """Rows in another order or number; the weights go with them. Keeps where they went."""
    node = begin(_moved_back, tensor, weights)
    result = empty(tensor.machine, shape, tensor.dtype)
    places = empty(tensor.machine, (max(result.numel, tensor.numel) // shape[-1],), "int32")
    if node is not None:
        node.save(places)
    return finish(node, result)


def _moved_back(node: Node, gradient: Tensor) -> list[Tensor | None]:
    made = [
        None if expected is None else empty(node.machine, expected[0], expected[1])
        for expected in node.inputs
    ]
    del gradient
    return list(made)


def _sent(rows: Tensor, count: int, size: int, spread: Spread, facts: Moe) -> Tensor:
    """To the ranks that have the experts, gathered over those that cut them, sorted by expert."""
    if spread.ep > 1:
        rows = _moved(rows, rows.shape, None)
    if count != rows.shape[0]:
        rows = _moved(rows, (count, size), None)
    if facts.num_experts // spread.ep > 1:
        rows = _moved(rows, (count, size), None)
    return rows


def _experts(m: Machine, case: Case, rows: Tensor, facts: Moe, spread: Spread) -> Tensor:
    weights = _named(m, case, "routed_experts")
    times = 2 if facts.expert.gated else 1
    width = facts.expert.ffn_size // spread.etp
    opened = _grouped(rows, weights[:-1], times * width)
    del rows
    product = kernels.activation(opened, gated=facts.expert.gated)
    del opened
    return _grouped(product, weights[-1:], case.hidden_size)


def _grouped(rows: Tensor, weights: list[Tensor], outputs: int) -> Tensor:
    """One product an expert; keeps its input."""
    node = begin(_grouped_back, rows, *weights)
    if node is not None:
        node.save(rows)
    return finish(node, empty(rows.machine, (rows.shape[0], outputs), rows.dtype))


def _grouped_back(node: Node, gradient: Tensor) -> list[Tensor | None]:
    (rows,) = node.unpack()
    made: list[Tensor | None] = [empty(node.machine, rows.shape, rows.dtype)]
    for place, expected in enumerate(node.inputs):
        if place and expected is not None:
            needed = node.needs(place)
            made.append(empty(node.machine, expected[0], gradient.dtype) if needed else None)
    return made


def _shared(m: Machine, case: Case, hidden: Tensor, facts: Moe) -> Tensor:
    """Cut like an MLP; under sequence parallelism all tokens are gathered for it."""
    assert facts.shared is not None
    tp = case.layout.tp
    whole = case.training.sequence_length
    weights = _named(m, case, "shared_experts")
    if hidden.shape[1] < whole:
        wide = kernels.gathering_linear(hidden, weights[:-1], tp=tp)
    else:
        wide = kernels.linear(hidden, weights[:-1])
    product = kernels.activation(wide, gated=facts.shared.gated)
    del wide
    if hidden.shape[1] < whole:
        return kernels.scattering_linear(product, weights[-1:], tp=tp)
    return kernels.linear(product, weights[-1:])


def _named(m: Machine, case: Case, component: str) -> list[Tensor]:
    """Matrices of this component, in order."""
    return [
        m.parameters[parameter.name]
        for parameter in case.layer.parameters
        if parameter.component == component and len(parameter.shape) > 1
    ]
