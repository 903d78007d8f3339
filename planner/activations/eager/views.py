"""Operations that look at the same storage, and the copies where they cannot."""

from planner.activations.eager.autograd import Node, begin, finish
from planner.activations.eager.tensor import (
    Shape,
    Tensor,
    empty,
    is_contiguous,
    is_dense,
    iterated_strides,
    viewed_strides,
)


def _look(tensor: Tensor, shape: Shape, strides: Shape) -> Tensor:
    base = tensor if tensor.base is None else tensor.base
    return Tensor(tensor.storage, shape, strides, tensor.dtype, base)


def _filled(shape: Shape, numel: int) -> Shape:
    """The shape with its -1 filled in."""
    if -1 not in shape:
        return shape
    known = -1
    for size in shape:
        known *= size
    return tuple(numel // known if size == -1 else size for size in shape)


def view(tensor: Tensor, *shape: int) -> Tensor:
    """``tensor.view(*shape)``."""
    node = begin(_reshape_back, tensor)
    new_shape = _filled(shape, tensor.numel)
    strides = viewed_strides(tensor.shape, tensor.strides, new_shape)
    assert strides is not None, (tensor.shape, tensor.strides, new_shape)
    return finish(node, _look(tensor, new_shape, strides))


def unsafe_view(tensor: Tensor, *shape: int) -> Tensor:
    """A view that autograd does not track as one: of a result that nobody else sees."""
    node = begin(_reshape_back, tensor)
    new_shape = _filled(shape, tensor.numel)
    strides = viewed_strides(tensor.shape, tensor.strides, new_shape)
    assert strides is not None, (tensor.shape, tensor.strides, new_shape)
    return finish(node, Tensor(tensor.storage, new_shape, strides, tensor.dtype))


def _reshape_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    shape = node.inputs[0]
    assert shape is not None
    return (reshape(gradient, *shape[0]),)


def reshape(tensor: Tensor, *shape: int) -> Tensor:
    """``tensor.reshape(*shape)``: a view where strides allow it, else a copy."""
    new_shape = _filled(shape, tensor.numel)
    if viewed_strides(tensor.shape, tensor.strides, new_shape) is not None:
        return view(tensor, *new_shape)
    return unsafe_view(clone(tensor), *new_shape)


def transpose(tensor: Tensor, first: int, second: int) -> Tensor:
    """``tensor.transpose(first, second)``."""
    node = begin(_transpose_back, tensor, facts=(first, second))
    shape, strides = list(tensor.shape), list(tensor.strides)
    shape[first], shape[second] = shape[second], shape[first]
    strides[first], strides[second] = strides[second], strides[first]
    return finish(node, _look(tensor, tuple(shape), tuple(strides)))


def _transpose_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    return (transpose(gradient, *node.facts),)


def permute(tensor: Tensor, *dims: int) -> Tensor:
    """``tensor.permute(*dims)``."""
    node = begin(_permute_back, tensor, facts=dims)
    shape = tuple(tensor.shape[dim] for dim in dims)
    return finish(node, _look(tensor, shape, tuple(tensor.strides[dim] for dim in dims)))


def _permute_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    dims: Shape = node.facts
    return (permute(gradient, *(dims.index(dim) for dim in range(len(dims)))),)


def unsqueeze(tensor: Tensor, dim: int) -> Tensor:
    """``tensor.unsqueeze(dim)``, dim not negative."""
    node = begin(_unsqueeze_back, tensor, facts=dim)
    shape, strides = tensor.shape, tensor.strides
    stride = shape[dim] * strides[dim] if dim < len(shape) else 1
    return finish(
        node,
        _look(tensor, (*shape[:dim], 1, *shape[dim:]), (*strides[:dim], stride, *strides[dim:])),
    )


def _unsqueeze_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    dim: int = node.facts
    shape, strides = gradient.shape, gradient.strides
    return (_look(gradient, shape[:dim] + shape[dim + 1 :], strides[:dim] + strides[dim + 1 :]),)


def expand(tensor: Tensor, *shape: int) -> Tensor:
    """``tensor.expand(*shape)``: repeated by stride 0."""
    node = begin(_expand_back, tensor)
    lead = len(shape) - len(tensor.shape)
    sizes = (1,) * lead + tensor.shape
    steps = (0,) * lead + tensor.strides
    strides = tuple(
        0 if size == 1 != new else step for size, step, new in zip(sizes, steps, shape, strict=True)
    )
    return finish(node, _look(tensor, shape, strides))


def _expand_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    del node
    # The reduction to the input's shape is the engine's: every gradient is checked against it.
    return (gradient.again(),)


def narrow(tensor: Tensor, dim: int, length: int, *, step: int = 1) -> Tensor:
    """A slice of ``length`` along ``dim``, as ``tensor[..., a:b:step]``."""
    dim %= len(tensor.shape)
    node = begin(_narrow_back, tensor)
    shape = (*tensor.shape[:dim], length, *tensor.shape[dim + 1 :])
    strides = tensor.strides
    if step != 1:
        strides = (*strides[:dim], strides[dim] * step, *strides[dim + 1 :])
    return finish(node, _look(tensor, shape, strides))


def _narrow_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    # slice_backward writes the gradient into zeros of the whole shape.
    expected = node.inputs[0]
    assert expected is not None
    return (empty(node.machine, expected[0], gradient.dtype),)


def select(tensor: Tensor, dim: int) -> Tensor:
    """One index of ``dim``, as ``tensor[..., i, :]``."""
    dim %= len(tensor.shape)
    node = begin(_narrow_back, tensor)
    shape = tensor.shape[:dim] + tensor.shape[dim + 1 :]
    return finish(node, _look(tensor, shape, tensor.strides[:dim] + tensor.strides[dim + 1 :]))


def split(tensor: Tensor, sizes: tuple[int, ...], dim: int) -> list[Tensor]:
    """``tensor.split(sizes, dim)``; one node for all pieces."""
    dim %= len(tensor.shape)
    node = begin(_split_back, tensor, facts=(sizes, dim))
    pieces = []
    for size in sizes:
        shape = (*tensor.shape[:dim], size, *tensor.shape[dim + 1 :])
        pieces.append(finish(node, _look(tensor, shape, tensor.strides)))
    return pieces


def _split_back(node: Node, *gradients: Tensor | None) -> tuple[Tensor]:
    # Pieces without a gradient are filled with zeros before the pieces are joined.
    sizes, dim = node.facts
    expected = node.inputs[0]
    assert expected is not None
    shape = expected[0]
    pieces = [
        piece
        if piece is not None
        else empty(node.machine, (*shape[:dim], size, *shape[dim + 1 :]), expected[1])
        for piece, size in zip(gradients, sizes, strict=True)
    ]
    return (cat(pieces, dim),)


def cat(pieces: list[Tensor], dim: int) -> Tensor:
    """``torch.cat``: a new contiguous tensor."""
    dim %= len(pieces[0].shape)
    node = begin(_cat_back, *pieces, facts=dim)
    first = pieces[0]
    length = sum(piece.shape[dim] for piece in pieces)
    shape = (*first.shape[:dim], length, *first.shape[dim + 1 :])
    return finish(node, empty(first.machine, shape, first.dtype))


def _cat_back(node: Node, gradient: Tensor) -> tuple[Tensor | None, ...]:
    result: list[Tensor | None] = []
    for place, expected in enumerate(node.inputs):
        assert expected is not None
        piece = _look(gradient, expected[0], gradient.strides) if node.needs(place) else None
        result.append(piece)
    return tuple(result)


def clone(tensor: Tensor) -> Tensor:
    """A contiguous copy."""
    node = begin(_clone_back, tensor)
    return finish(node, empty(tensor.machine, tensor.shape, tensor.dtype))


def _clone_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    del node
    return (gradient.again(),)


def contiguous(tensor: Tensor) -> Tensor:
    """``tensor.contiguous()``: itself, or a copy."""
    return tensor if is_contiguous(tensor.shape, tensor.strides) else clone(tensor)


def like(tensor: Tensor, dtype: str | None = None) -> Tensor:
    """``torch.empty_like``: dense, in the order of the tensor's dims."""
    strides = (
        tensor.strides
        if is_dense(tensor.shape, tensor.strides)
        else iterated_strides(tensor.shape, (tensor,))
    )
    return empty(tensor.machine, tensor.shape, dtype or tensor.dtype, strides)


def assemble(shape: Shape, pieces: list[Tensor]) -> Tensor:
    """``new_empty`` whose slices along the last dim are filled by ``copy_``.

    Each copy is a CopySlices node over the one before: it copies the whole gradient, takes the
    slice out of the copy, and writes zeros there if anything was written before.
    """
    first = pieces[0]
    result = empty(first.machine, shape, first.dtype)
    for piece in pieces:
        node = begin(_copy_slices_back, result, piece)
        if node is not None:
            result.edge = (node, 0)
            node.num_outputs = 1
    return result


def _copy_slices_back(node: Node, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
    expected = node.inputs[1]
    assert expected is not None
    whole: Tensor | None = empty(node.machine, gradient.shape, gradient.dtype)
    piece = empty(node.machine, expected[0], gradient.dtype)
    if node.needs(0):
        zeros = like(piece)
        del zeros
    else:
        whole = None
    return whole, piece
