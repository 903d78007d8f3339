"""The experts themselves: gate and up, their product, down, over rows that are sorted by expert.

Source: moe/ep_experts.py of DeepSpeed 0.19.8: grouped products on CUDA (line 247), one expert
after the other on the CPU (line 180).
"""

from typing import NamedTuple

from planner.activations.eager import (
    Machine,
    Tensor,
    begin,
    cat,
    empty,
    finish,
    mm,
    mul,
    narrow,
    select,
    split,
    transpose,
    unary,
)
from planner.activations.eager.autograd import Node
from planner.activations.eager.views import like
from planner.activations.programs.case import Case


class Routed(NamedTuple):
    """The rank's experts: gate and up as one parameter or two, (E, F, H) each, and down."""

    gate_up: tuple[Tensor, ...]
    down: Tensor

    @classmethod
    def of(cls, m: Machine, case: Case) -> "Routed":
        """The layer's routed experts; AutoEP registers gate, down, up."""
        found = [
            m.parameters[parameter.name]
            for parameter in case.layer.parameters
            if parameter.component == "routed_experts" and len(parameter.shape) > 2  # noqa: PLR2004
        ]
        if len(found) == 2:  # noqa: PLR2004
            return cls((found[0],), found[1])
        gate, down, up = found
        return cls((gate, up), down)


def run_experts(
    m: Machine, routed: Routed, rows: Tensor, counts: tuple[int, ...] | None = None
) -> Tensor:
    """(P, H) to (P, H); ``counts``: rows of each expert, where one runs after the other."""
    if m.backend == "cpu":
        share = rows.shape[0] // routed.down.shape[0]
        return _one_by_one(routed, rows, counts or (share,) * routed.down.shape[0])
    gate, up = _gate_and_up(rows, routed)
    product = _swiglu(gate, up)
    del gate, up
    return _grouped(product, routed.down)


def _gate_and_up(rows: Tensor, routed: Routed) -> tuple[Tensor, Tensor]:
    """Two grouped products of the same rows."""
    node = begin(_gate_and_up_back, rows, *routed.gate_up)
    if node is not None:
        node.save(rows)
    weights = sum(weight.numel for weight in routed.gate_up)
    shape = (rows.shape[0], weights // (2 * routed.down.shape[0] * rows.shape[1]))
    first, second = (empty(rows.machine, shape, rows.dtype) for _ in range(2))
    return finish(node, first), finish(node, second)


def _gate_and_up_back(node: Node, to_gate: Tensor, to_up: Tensor) -> list[Tensor]:
    """The rows' gradient comes twice and is added up."""
    (rows,) = node.unpack()
    del to_gate, to_up
    result = like(rows)
    weights = [
        empty(node.machine, expected[0], rows.dtype)
        for expected in node.inputs[1:]
        if expected is not None
    ]
    other = like(rows)
    del other
    return [result, *weights]


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """One kernel that keeps both halves (ops/triton_ops/swiglu_triton.py)."""
    node = begin(_swiglu_back, gate, up)
    if node is not None:
        node.save(gate, up)
    return finish(node, like(gate))


def _swiglu_back(node: Node, gradient: Tensor) -> list[Tensor]:
    gate, up = node.unpack()
    del gradient
    return [like(gate), like(up)]


def _grouped(rows: Tensor, weight: Tensor) -> Tensor:
    node = begin(_grouped_back, rows, weight)
    if node is not None:
        node.save(rows)
    size = weight.numel // (weight.shape[0] * rows.shape[1])
    return finish(node, empty(rows.machine, (rows.shape[0], size), rows.dtype))


def _grouped_back(node: Node, gradient: Tensor) -> list[Tensor]:
    (rows,) = node.unpack()
    expected = node.inputs[1]
    assert expected is not None
    return [like(rows), empty(node.machine, expected[0], gradient.dtype)]


def _one_by_one(routed: Routed, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    """``_run_experts_for_loop``: what is padding is put back as zeros."""
    gate, up = routed.gate_up
    used = sum(counts)
    results = []
    for share in split(narrow(rows, 0, used), counts, 0):
        opener, raiser, lowerer = (
            transpose(select(weight, 0), 0, 1) for weight in (gate, up, routed.down)
        )
        opened, raised = mm(share, opener), mm(share, raiser)
        product = mul(unary(opened), raised)
        product = mm(product, lowerer)
        results.append(product)
    joined = cat(results, 0)
    padding = empty(rows.machine, (rows.shape[0] - used, rows.shape[1]), rows.dtype)
    return cat([joined, padding], 0)
