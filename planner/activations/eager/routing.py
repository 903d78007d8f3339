"""Operations that choose, gather and group: what mixtures of experts are made of.

Sources, PyTorch 2.13: tools/autograd/derivatives.yaml; index_backward and
value_selecting_reduction_backward in torch/csrc/autograd/FunctionsManual.cpp, which write into
their zeros in place unless a dispatch mode is on; _grouped_mm_mat1_backward and its fellow. Left
out: the sorted copies of the indices that CUDA's index_put makes, 24 B an index.
"""

from planner.activations.eager.autograd import Node, begin, finish
from planner.activations.eager.tensor import Tensor, empty, iterated_strides
from planner.activations.eager.views import expand, like, unsqueeze


def _into_zeros(node: Node) -> Tensor:
    """The gradient scattered into zeros of the input's shape; out of place under a ledger."""
    expected = node.inputs[0]
    assert expected is not None
    shape, dtype = expected
    zeros = empty(node.machine, shape, dtype)
    return zeros if node.machine.in_place else like(zeros)


def topk(tensor: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``torch.topk`` over the last dim: values and int64 places, which it saves."""
    node = begin(_chosen_back, tensor)
    shape = (*tensor.shape[:-1], count)
    values = empty(tensor.machine, shape, tensor.dtype)
    places = empty(tensor.machine, shape, "int64")
    if node is not None:
        node.save(places)
    return finish(node, values), places


def _chosen_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    del gradient
    places = node.unpack()
    result = _into_zeros(node)
    del places
    return (result,)


def gather(tensor: Tensor, places: Tensor) -> Tensor:
    """``tensor.gather(1, places)``, both saved; its gradient is scattered into zeros in place."""
    node = begin(_gather_back, tensor)
    if node is not None:
        node.save(tensor, places)
    return finish(node, empty(tensor.machine, places.shape, tensor.dtype))


def _gather_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    del gradient
    places = node.unpack()
    result = _into_zeros(node)
    del places
    return (result,)


def rows(tensor: Tensor, places: Tensor) -> Tensor:
    """``tensor[places]``: rows by a 1-D index, which it saves."""
    node = begin(_chosen_back, tensor)
    if node is not None:
        node.save(places)
    shape = (*places.shape, *tensor.shape[1:])
    return finish(node, empty(tensor.machine, shape, tensor.dtype))


def masked_fill(tensor: Tensor, mask: Tensor) -> Tensor:
    """``tensor.masked_fill(mask, number)``: saves the mask, and fills its gradient the same way."""
    node = begin(_masked_back, tensor)
    if node is not None:
        node.save(mask)
    return finish(node, like(tensor))


def _masked_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    mask = node.unpack()
    result = like(gradient)
    del mask
    return (result,)


def sum_over(tensor: Tensor, dim: int, *, keepdim: bool = False) -> Tensor:
    """``tensor.sum(dim)``: its gradient is an expanded view."""
    dim %= len(tensor.shape)
    node = begin(_sum_back, tensor, facts=None if keepdim else dim)
    middle = (1,) if keepdim else ()
    shape = (*tensor.shape[:dim], *middle, *tensor.shape[dim + 1 :])
    return finish(node, empty(tensor.machine, shape, tensor.dtype))


def _sum_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    expected = node.inputs[0]
    assert expected is not None
    wide = gradient if node.facts is None else unsqueeze(gradient, node.facts)
    return (expand(wide, *expected[0]),)


def divide_in_place(tensor: Tensor, divisor: Tensor) -> Tensor:
    """``tensor /= divisor``: autograd keeps a copy of what is overwritten, and the divisor."""
    node = begin(_divide_back, tensor, divisor)
    if node is not None:
        original = like(tensor) if node.needs(1) else None
        node.save(divisor, original)
        del original
    result = Tensor(tensor.storage, tensor.shape, tensor.strides, tensor.dtype)
    return finish(node, result)


def _divide_back(node: Node, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    """-gradient * ((original / divisor) / divisor) for the divisor, gradient / divisor."""
    divisor, original = node.unpack()
    to_divisor = None
    if original is not None:
        quotient = like(original)
        again = like(quotient)
        negative = like(gradient)
        strides = iterated_strides(negative.shape, (negative, again))
        to_divisor = empty(node.machine, negative.shape, negative.dtype, strides)
        del quotient, again, negative
    del divisor
    return like(gradient), to_divisor


def grouped_mm(tensor: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """``grouped_mm`` of rows sorted by expert with (E, in, out): one product an expert."""
    node = begin(_grouped_back, tensor, weight)
    if node is not None:
        node.save(tensor if node.needs(1) else None, weight if node.needs(0) else None, offsets)
    shape = (tensor.shape[0], weight.shape[2])
    return finish(node, empty(tensor.machine, shape, tensor.dtype))


def _grouped_back(node: Node, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    tensor, weight, _offsets = node.unpack()
    machine = node.machine
    to_weight = None
    if tensor is not None:
        experts, inner, outer = (node.inputs[1] or ((), ""))[0]
        # The weight is a transposed view, and its gradient is laid out as the weight.
        to_weight = empty(
            machine, (experts, inner, outer), gradient.dtype, (inner * outer, 1, inner)
        )
    to_tensor = None
    if weight is not None:
        to_tensor = empty(machine, (gradient.shape[0], weight.shape[1]), gradient.dtype)
    return to_tensor, to_weight
