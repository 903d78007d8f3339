"""Rows of tokens moved about: indexed, exchanged, permuted, weighted.

Line numbers are of module_inject/auto_ep_layer.py of DeepSpeed 0.19.8. On CUDA rows are permuted
by gathers (moe/ep_kernels.py:340-390), on the CPU by indexing a padded copy.
"""

from planner.activations.eager import Tensor, begin, cat, empty, finish
from planner.activations.eager.autograd import Node
from planner.activations.eager.tensor import contiguous_strides


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``torch.topk(scores, k)``: values, which nobody uses, and int64 indices."""
    rows = scores.shape[0]
    return (
        empty(scores.machine, (rows, k), scores.dtype),
        empty(scores.machine, (rows, k), "int64"),
    )


def gather(scores: Tensor, index: Tensor) -> Tensor:
    """``scores.gather(1, index)``: saves the index; its gradient is scattered into zeros."""
    node = begin(_gather_back, scores)
    if node is not None:
        node.save(index)
    return finish(node, empty(scores.machine, index.shape, scores.dtype))


def _gather_back(node: Node, gradient: Tensor) -> list[Tensor]:
    node.unpack()
    return [_input_like(node, gradient.dtype)]


def _input_like(node: Node, dtype: str, place: int = 0) -> Tensor:
    expected = node.inputs[place]
    assert expected is not None
    return empty(node.machine, expected[0], dtype)


def normalise_last(scores: Tensor) -> Tensor:
    """``scores / (scores.sum(-1, keepdim=True) + 1e-20)``: saves both sides of the division."""
    node = begin(_normalise_back, scores)
    rows = (*scores.shape[:-1], 1)
    total = empty(scores.machine, rows, scores.dtype)
    denominator = empty(scores.machine, rows, scores.dtype)
    if node is not None:
        node.save(scores, denominator)
    result = empty(scores.machine, scores.shape, scores.dtype)
    del total
    return finish(node, result)


def _normalise_back(node: Node, gradient: Tensor) -> list[Tensor]:
    scores, denominator = node.unpack()
    to_scores = empty(node.machine, scores.shape, scores.dtype)
    to_denominator = empty(node.machine, denominator.shape, scores.dtype)
    del gradient, to_denominator
    return [to_scores]


def take(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]``: saves the index. Nobody uses the result here, so no gradient comes."""
    node = begin(_gather_back, values)
    if node is not None:
        node.save(index)
    return finish(node, empty(values.machine, index.shape, values.dtype))


def take_rows(x: Tensor, order: Tensor) -> Tensor:
    """``x[order // k]``: saves the quotients; the gradient is added up in zeros (1021)."""
    node = begin(_gather_back, x)
    quotients = empty(x.machine, order.shape, "int64")
    if node is not None:
        node.save(quotients)
    return finish(node, empty(x.machine, (order.numel, x.shape[1]), x.dtype))


def exchange(rows: Tensor, received: int) -> Tensor:
    """``_AllToAllV``: a new tensor, nothing saved (297-341)."""
    node = begin(_exchange_back, rows)
    return finish(node, empty(rows.machine, (received, rows.shape[1]), rows.dtype))


def _exchange_back(node: Node, gradient: Tensor) -> list[Tensor]:
    return [_input_like(node, gradient.dtype)]


def permute(rows: Tensor, places: Tensor) -> Tensor:
    """``permute_by_local_expert``: saves the indices, on CUDA also their inverse (344-417)."""
    if rows.machine.backend == "cpu":
        return _index(_with_zero_row(rows), places)
    node = begin(_exchange_back, rows)
    inverse = _inverse(places, rows.shape[0])
    if node is not None:
        node.save(places, inverse)
    return finish(node, empty(rows.machine, (places.numel, rows.shape[1]), rows.dtype))


def _with_zero_row(rows: Tensor) -> Tensor:
    zero = empty(rows.machine, (1, rows.shape[1]), rows.dtype)
    return cat([rows, zero], 0)


def _index(rows: Tensor, places: Tensor) -> Tensor:
    node = begin(_gather_back, rows)
    if node is not None:
        node.save(places)
    return finish(node, empty(rows.machine, (places.numel, rows.shape[1]), rows.dtype))


def _inverse(places: Tensor, rows: int) -> Tensor:
    """``inverse_permutation``, moe/ep_kernels.py:314-335: four int64 temporaries, one kept."""
    machine, padded = places.machine, places.numel
    steps = [empty(machine, (padded,), "int64") for _ in range(2)]
    valid = [empty(machine, (padded,), "bool") for _ in range(3)]
    shifted = empty(machine, (padded,), "int64")
    targets = empty(machine, (padded,), "int64")
    del shifted
    inverse = empty(machine, (rows + padded,), "int64")
    del steps, valid, targets
    return inverse


def unpermute(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """``unpermute_by_local_expert``: back to the order of arrival (420-445)."""
    node = begin(_exchange_back, rows)
    machine, size = rows.machine, rows.shape[1]
    if machine.backend == "cpu":
        whole = empty(machine, (count + 1, size), rows.dtype)
        if node is not None:
            node.save(places)
        seen = Tensor(whole.storage, (count, size), contiguous_strides((count, size)), rows.dtype)
        return finish(node, seen)
    inverse = _inverse(places, count)
    if node is not None:
        node.save(places, inverse)
    return finish(node, empty(machine, (count, size), rows.dtype))


def combine(rows: Tensor, scores: Tensor, order: Tensor) -> Tensor:
    """``combine_from_routed`` (448-487): rows in place, weighted in fp32, summed over K."""
    node = begin(_combine_back, rows, scores)
    machine, size = rows.machine, rows.shape[1]
    placed = empty(machine, rows.shape, rows.dtype)
    if node is not None:
        node.save(placed, scores, order)
    weighted = empty(machine, rows.shape, "fp32")
    total = empty(machine, (scores.shape[0], size), "fp32")
    del weighted
    result = empty(machine, (scores.shape[0], size), rows.dtype)
    del total
    return finish(node, result)


def _combine_back(node: Node, gradient: Tensor) -> list[Tensor]:
    """The weighted rows' gradient and the scores', both in fp32 and whole, then reduced."""
    placed, *_ = node.unpack()
    machine = node.machine
    wide = empty(machine, gradient.shape, "fp32")
    to_scores = empty(machine, placed.shape, "fp32")
    to_placed = empty(machine, placed.shape, "fp32")
    narrow = empty(machine, placed.shape, placed.dtype)
    del to_placed
    reduced = _input_like(node, "fp32", 1)
    del to_scores, wide
    to_rows = empty(machine, placed.shape, placed.dtype)
    del narrow
    return [to_rows, reduced]
