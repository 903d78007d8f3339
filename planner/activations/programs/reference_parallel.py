"""Tensor parallelism of the reference transformer; twin of ``validate/reference/parallel.py``."""

from planner.activations.eager import (
    Machine,
    Node,
    Tensor,
    add,
    begin,
    empty,
    finish,
    like,
    linear,
    reduce_backward,
    reduce_forward,
    transpose,
)
from planner.activations.eager.nn import embedding
from planner.activations.programs.case import Case
from planner.memory.terms import Term
from planner.model.description import Parameter
from planner.model.modules import ends_branch, is_turned, owner


def enter_branch(case: Case, hidden: Tensor) -> Tensor:
    """The same on every rank; the gradient is summed over them in place."""
    return hidden if case.layout.tp == 1 else reduce_backward(hidden)


def product(m: Machine, case: Case, x: Tensor, matrix: Parameter) -> Tensor:
    """``Linear.forward``."""
    name = owner(matrix)
    weight, bias = m.parameters[matrix.name], m.get(name, "bias")
    cut = case.layout.tp > 1 and matrix.tp_dim is not None
    summed = cut and ends_branch(case.layer, matrix)

    def forward(x: Tensor) -> Tensor:
        held = transpose(weight, 0, 1) if is_turned(case.layer, matrix) else weight
        if not summed:
            return linear(x, held, bias)
        partial = reduce_forward(linear(x, held))
        return partial if bias is None else add(partial, bias)

    return m.module(name, forward, x)


def embed(m: Machine, case: Case, weight: Tensor) -> Tensor:
    """The token embedding, by ``embed_over_ranks`` where it is cut."""
    shape = (case.batch, case.length)
    if weight.shape[0] == case.vocab_size:
        return embedding(weight, shape)
    places = empty(m, shape, "int64")
    outside = _outside(m, shape)
    hidden = _filled(_look_up(weight, places), outside)
    return reduce_forward(hidden)


def _outside(m: Machine, shape: tuple[int, ...]) -> Tensor:
    """Comparisons with both ends of the rank's rows, and whether one of them holds."""
    below, above = empty(m, shape, "bool"), empty(m, shape, "bool")
    either = empty(m, shape, "bool")
    del below, above
    return either


def _look_up(weight: Tensor, places: Tensor) -> Tensor:
    node = begin(_look_up_back, weight)
    if node is not None:
        node.save(places)
    return finish(node, empty(weight.machine, (*places.shape, weight.shape[1]), weight.dtype))


def _look_up_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    expected = node.inputs[0]
    assert expected is not None
    return (empty(node.machine, expected[0], gradient.dtype),)


def _filled(tensor: Tensor, mask: Tensor) -> Tensor:
    """``tensor.masked_fill_(mask, 0)``: saves the mask; the gradient is filled in a copy."""
    node = begin(_filled_back, tensor)
    if node is not None:
        node.save(mask)
    return finish(node, tensor.alias())


def _filled_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    del node
    return (like(gradient),)


def cross_entropy(m: Machine, wide: Tensor) -> Tensor:
    """``_CrossEntropy``: what it saves is the softmax of the rank's share, in place of all else."""
    node = begin(_cross_entropy_back, wide)
    rows = wide.shape[:1]
    largest = empty(m, rows, "fp32")
    softmax = like(wide)
    places = empty(m, rows, "int64")
    outside = _outside(m, rows)
    chosen = empty(m, rows, "fp32")
    total = empty(m, rows, "fp32")
    if node is not None:
        node.save(softmax, places, outside)
    loss = empty(m, (), "fp32")
    del largest, chosen, total
    return finish(node, loss)


def _cross_entropy_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    softmax, places, _outside_rows = node.unpack()
    hits = node.machine.book(empty(node.machine, places.shape, "fp32"), Term.LOGITS)
    scaled = empty(node.machine, (), "fp32")
    del hits, scaled, gradient
    return (softmax.again(),)
