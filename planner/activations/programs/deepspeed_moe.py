"""DeepSpeed's MoE layer: every expert computes a fixed number of tokens, dropped or padded to it.

Source: moe/sharded_moe.py of DeepSpeed 0.19.8 (``MOELayer.forward`` :631, ``_sparse_encode`` :187,
``_sparse_decode`` :203, ``_AllToAll`` :95) and moe/experts.py:30. S tokens of the rank in K routes,
E experts with room for C tokens each, of which E/ep are the rank's own; H hidden.
"""

from planner.activations.eager import (
    Machine,
    Tensor,
    begin,
    cat,
    empty,
    finish,
    mul,
    reshape,
    rows,
    split,
    sum_over,
    to,
    unsqueeze,
    view,
)
from planner.activations.eager.autograd import Node
from planner.activations.eager.pieces import keep_beside
from planner.activations.eager.views import contiguous, like
from planner.activations.programs.case import Case
from planner.activations.programs.deepspeed_gate import Routes, capacity, route
from planner.activations.programs.modules import activate, project
from planner.layout.experts import native_expert
from planner.model.description import Mlp, Moe


def mixture(m: Machine, case: Case, hidden: Tensor) -> Tensor:
    """``MOELayer.forward`` on (B, T, H), without what a model adds to it (shared experts)."""
    moe, room = case.mlp, capacity(case)
    assert isinstance(moe, Moe)
    shape = hidden.shape
    x = reshape(hidden, -1, shape[-1])
    with m.part("router"):
        routes = route(m, case, x, _router(m, case))
        slots = _slots(routes)
    with m.part("experts"):
        tokens = _encode(x, slots, moe.num_experts * room)
        for kept in routes.kept:
            tokens = keep_beside(tokens, kept)
        tokens = view(tokens, moe.num_experts, room, shape[-1])
        tokens = _exchange(tokens, case.layout.ep)
        result = _run_experts(m, case, moe, tokens)
        result = reshape(result, moe.num_experts, room, shape[-1])
        result = _exchange(result, case.layout.ep)
        output = _decode(view(result, -1, shape[-1]), slots, routes.gates)
        del tokens, result
    return reshape(output, *shape)


def _router(m: Machine, case: Case) -> Tensor:
    name = next(p.name for p in case.layer.parameters if p.component == "router")
    return m.parameters[name]


def _slots(routes: Routes) -> Tensor:
    """``_route_slots`` (:175): the row of the experts' buffer that each route goes to."""
    machine, shape = routes.experts.machine, routes.experts.shape
    wide = empty(machine, shape, "int64")
    scaled = empty(machine, shape, "int64")
    del wide
    locations = empty(machine, shape, "int64")
    flat = empty(machine, shape, "int64")
    del scaled, locations
    scratch = empty(machine, shape, "int64")
    valid = empty(machine, shape, "bool")
    result = empty(machine, shape, "int64")
    del flat, scratch, valid
    return result


def _encode(x: Tensor, slots: Tensor, num_slots: int) -> Tensor:
    """(S, H) to (E C, H): each slot's token, or a row of zeros."""
    machine, (tokens, size) = x.machine, x.shape
    source = empty(machine, (num_slots + 1,), "int64")
    numbers = empty(machine, (tokens,), "int64")
    if slots.shape[0] > 1:
        repeated = empty(machine, slots.shape, "int64")
        del repeated
    padded = _with_zero_row(x, size)
    used = Tensor(source.storage, (num_slots,), (1,), "int64")
    result = rows(padded, used)
    del numbers
    return result


def _with_zero_row(x: Tensor, size: int) -> Tensor:
    return cat([x, empty(x.machine, (1, size), x.dtype)], 0)


def _exchange(tokens: Tensor, ep: int) -> Tensor:
    """``_AllToAll``: a new tensor of the same size; with one rank nothing happens."""
    if ep == 1:
        return contiguous(tokens)
    node = begin(_exchange_back, tokens)
    return finish(node, like(contiguous(tokens)))


def _exchange_back(node: Node, gradient: Tensor) -> list[Tensor]:
    del node
    return [like(contiguous(gradient))]


def _run_experts(m: Machine, case: Case, moe: Moe, tokens: Tensor) -> Tensor:
    """``Experts.forward``: one expert after the other, each on its tokens of all ranks."""
    ep, size = case.layout.ep, tokens.shape[-1]
    count = moe.num_experts // ep
    tokens = reshape(tokens, ep, count, -1, size)
    chunks = split(tokens, (1,) * count, 1)
    results = [_run_expert(m, case, moe.expert, chunk, index) for index, chunk in enumerate(chunks)]
    return cat(results, 1)


def _run_expert(m: Machine, case: Case, facts: Mlp, x: Tensor, index: int) -> Tensor:
    """The gated MLP that the training code gives to DeepSpeed's layer."""
    folder = next(p.name.partition(".")[0] for p in case.layer.parameters if p.routed)
    own = native_expert(folder, index)
    opened = activate(facts.activation, project(m, x, f"{own}.gate_proj"))
    product = mul(opened, project(m, x, f"{own}.up_proj"))
    del opened
    return project(m, product, f"{own}.down_proj")


def _decode(result: Tensor, slots: Tensor, gates: Tensor) -> Tensor:
    """(E C, H) to (S, H): each route's row weighted in fp32, summed over the routes."""
    routes, tokens = slots.shape
    size = result.shape[-1]
    padded = _with_zero_row(result, size)
    routed = view(rows(padded, view(slots, -1)), routes, tokens, size)
    combined = sum_over(mul(routed, unsqueeze(gates, 2)), 0)
    return to(combined, result.dtype)
