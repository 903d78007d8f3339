"""Tensors without numbers: shape, strides, dtype, and a storage that knows who still refers to it.

Eager PyTorch frees a tensor when the last reference goes: a Python name, a saved tensor, an
element of a gradient buffer. Programs here are Python functions over these tensors, so CPython's
own reference counting ends lives at the same points as it does in the code they mirror.
"""

from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Literal, Optional

if TYPE_CHECKING:
    from planner.activations.eager.autograd import Edge
    from planner.activations.eager.machine import Machine

DType = Literal["fp32", "fp16", "bf16", "bool", "int64", "int32", "uint8", "fp64"]

ITEM_BYTES: dict[str, int] = {
    "fp64": 8,
    "int64": 8,
    "fp32": 4,
    "int32": 4,
    "fp16": 2,
    "bf16": 2,
    "bool": 1,
    "uint8": 1,
}

Shape = tuple[int, ...]


class Storage:
    """Bytes that one allocation holds."""

    __slots__ = ("index", "machine", "recorded", "references", "size")

    def __init__(self, machine: "Machine", size: int, *, recorded: bool = True) -> None:
        self.machine = machine
        self.size = size
        self.references = 0
        self.recorded = recorded and size > 0
        self.index = machine.allocate(self) if self.recorded else 0

    def release(self) -> None:
        """The last reference has gone."""
        if self.recorded:
            self.recorded = False
            self.machine.free(self)


class Tensor:
    """A view of a storage, as autograd sees it."""

    __slots__ = ("base", "dtype", "edge", "shape", "storage", "strides")

    def __init__(
        self,
        storage: Storage,
        shape: Shape,
        strides: Shape,
        dtype: str,
        base: Optional["Tensor"] = None,
    ) -> None:
        storage.references += 1
        self.storage = storage
        self.shape = shape
        self.strides = strides
        self.dtype = dtype
        self.base = base
        """The tensor that a tracked view looks at; it stays alive with the view, which forbids
        to accumulate gradients into the view in place."""
        self.edge: Edge | None = None
        """The node that made it and which of the node's outputs it is; None: needs no gradient."""

    def __del__(self) -> None:
        storage = self.storage
        storage.references -= 1
        if not storage.references:
            storage.release()

    @property
    def machine(self) -> "Machine":
        """Where it was allocated."""
        return self.storage.machine

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def contiguous(self) -> bool:
        """Whether elements lie in row-major order without gaps."""
        return self.strides == contiguous_strides(self.shape) or is_contiguous(
            self.shape, self.strides
        )

    def alias(self, *, edge: "Edge | None" = None) -> "Tensor":
        """Another tensor of the same storage and shape, outside the graph unless told."""
        other = Tensor(self.storage, self.shape, self.strides, self.dtype)
        other.edge = edge
        return other

    def again(self) -> "Tensor":
        """The same tensor once more, where an operation hands one gradient to two inputs."""
        return Tensor(self.storage, self.shape, self.strides, self.dtype, self.base)


# The same few shapes come back in every layer, so what follows from a shape is remembered.
_remember = lru_cache(maxsize=8192)


@_remember
def contiguous_strides(shape: Shape) -> Shape:
    """Row-major strides in elements."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size or 1
    strides.reverse()
    return tuple(strides)


@_remember
def is_contiguous(shape: Shape, strides: Shape) -> bool:
    """Row-major without gaps; dims of size 1 may have any stride."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            if stride != step:
                return False
            step *= size
    return True


@_remember
def is_dense(shape: Shape, strides: Shape) -> bool:
    """Every element of the span is used once, in whatever order of dims."""
    step = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(strides, shape, strict=True) if size != 1
    ):
        if stride != step:
            return False
        step *= size
    return True


def empty(machine: "Machine", shape: Shape, dtype: str, strides: Shape | None = None) -> Tensor:
    """A new allocation; dense in the given order of dims."""
    storage = Storage(machine, prod(shape) * ITEM_BYTES[dtype])
    return Tensor(storage, shape, strides or contiguous_strides(shape), dtype)


def iterated_strides(shape: Shape, tensors: tuple[Tensor, ...]) -> Shape:
    """Order of dims of an elementwise result: TensorIterator keeps the operands' order."""
    return _iterated_strides(shape, tuple((tensor.shape, tensor.strides) for tensor in tensors))


@_remember
def _iterated_strides(shape: Shape, operands: tuple[tuple[Shape, Shape], ...]) -> Shape:
    """TensorIteratorBase::reorder_dimensions, aten/src/ATen/TensorIterator.cpp."""
    plain = contiguous_strides(shape)
    steps = [_stepped(operand, strides, shape) for operand, strides in operands]
    if steps[0] == plain:
        return plain
    order = list(range(len(shape) - 1, -1, -1))
    for start in range(1, len(shape)):
        place = start
        for lower in range(start - 1, -1, -1):
            verdict = _compare(order[lower], order[place], shape, steps)
            if verdict > 0:
                order[lower], order[place] = order[place], order[lower]
                place = lower
            elif verdict < 0:
                break
    strides = [0] * len(shape)
    step = 1
    for dim in order:
        strides[dim] = step
        step *= shape[dim]
    return tuple(strides)


def _stepped(operand: Shape, strides: Shape, shape: Shape) -> Shape:
    """Strides of an operand in the iteration over ``shape``: 0 where it is repeated."""
    lead = len(shape) - len(operand)
    return (0,) * lead + tuple(
        0 if size == 1 != whole else stride
        for size, stride, whole in zip(operand, strides, shape[lead:], strict=True)
    )


def _compare(first: int, second: int, shape: Shape, steps: list[Shape]) -> int:
    """Positive where ``first`` should come outside of ``second``."""
    for step in steps:
        if step[first] == 0 or step[second] == 0:
            continue
        if step[first] != step[second]:
            return 1 if step[first] > step[second] else -1
        if shape[first] > shape[second]:
            return 1
    return 0


@_remember
def viewed_strides(shape: Shape, strides: Shape, new_shape: Shape) -> Shape | None:
    """Strides of the same elements under another shape; None where only a copy can have it.

    Source: computeStride_impl, aten/src/ATen/TensorUtils.cpp of PyTorch 2.13.
    """
    if is_contiguous(shape, strides):
        return contiguous_strides(new_shape)
    result: list[int] = [0] * len(new_shape)
    view = len(new_shape) - 1
    chunk_base = strides[-1]
    tensor_numel = view_numel = 1
    for dim in range(len(shape) - 1, -1, -1):
        tensor_numel *= shape[dim]
        if dim == 0 or (shape[dim - 1] != 1 and strides[dim - 1] != tensor_numel * chunk_base):
            while view >= 0 and (view_numel < tensor_numel or new_shape[view] == 1):
                result[view] = view_numel * chunk_base
                view_numel *= new_shape[view]
                view -= 1
            if view_numel != tensor_numel:
                return None
            if dim > 0:
                chunk_base = strides[dim - 1]
                tensor_numel = view_numel = 1
    return tuple(result) if view == -1 else None
