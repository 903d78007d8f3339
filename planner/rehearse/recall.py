"""Operations that were seen before: equal arguments make equal tensors.

Torch takes some tenths of a millisecond to derive what an operation returns, a rank of a large
model has hundreds of thousands of them, and its layers are alike. What is recalled are sizes,
strides, and whose storage it is; operations that change their arguments are not for it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

PLAIN = {int, float, bool, str, type(None)} | {
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
}
"""Kinds of arguments that are told apart by their value."""

STANDIN = torch.device("privateuseone")
"""The stand-in by the name that torch knows from the start; also the keys of what lies on the host,
see `answers._movable`."""
EMPTY, SUBCLASS = torch.empty_strided, torch.Tensor._make_subclass


class _Made(NamedTuple):
    """How a tensor is made again."""

    argument: int | None
    """Whose storage it shares; None: it has one of its own."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    """Of elements, from the argument's first."""
    dtype: Any
    attributes: dict[str, Any]
    """Of the fake tensor: its device, its mode."""


class Recall:
    """Results by what they depend on."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def __call__(self, func: Any, /, *args: Any, **kwargs: Any) -> Any:
        """What the operation returns, derived by torch if it is the first of its kind."""
        key: list[Any] = [func, torch.get_default_dtype()]
        if not (_told(args, key) and _told(kwargs.items(), key)):
            return func(*args, **kwargs)
        facts = tuple(key)
        known = self._known.get(facts)
        if known is not None:
            return _again(known, args)
        result = func(*args, **kwargs)
        learnt = _learn(result, args)
        if learnt is not None:
            self._known[facts] = learnt
        return result


def _told(values: Iterable[Any], key: list[Any]) -> bool:
    """Add to the key; False if there is a value whose part in the result is not known."""
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if value.constant is not None:
                return False
            key += (value.shape, value.stride(), value.dtype, value._fake_device)
        elif kind in PLAIN:
            key += (kind, value)
        elif kind is list or kind is tuple:
            key.append(len(value))
            if not _told(value, key):
                return False
        else:
            return False
    return True


def _learn(result: Any, args: Sequence[Any]) -> Any:
    """How a result is made again: a `_Made`, the place of the argument that it is, or a list."""
    if type(result) in {list, tuple}:
        parts = [_learn(each, args) for each in result]
        return None if any(part is None for part in parts) else type(result)(parts)
    if type(result) is not FakeTensor or result.constant is not None:
        return None
    for place, each in enumerate(args):
        if each is result:
            return place
    return _made(result, args)


def _made(result: Any, args: Sequence[Any]) -> _Made | None:
    """What tells the result; None for a view of anything but the first argument's elements."""
    first = args[0] if args and type(args[0]) is FakeTensor else None
    own = _storage(result)
    argument, offset = None, result.storage_offset()
    if first is not None and _storage(first) == own:
        if first.dtype != result.dtype:
            return None
        argument, offset = 0, offset - first.storage_offset()
    elif any(type(each) is FakeTensor and _storage(each) == own for each in tree_leaves(args)):
        return None
    return _Made(
        argument=argument,
        shape=tuple(result.shape),
        stride=result.stride(),
        offset=offset,
        dtype=result.dtype,
        attributes=dict(vars(result)),
    )


def _storage(tensor: Any) -> int:
    return int(tensor.untyped_storage()._cdata)


def _again(known: Any, args: Sequence[Any]) -> Any:
    kind = type(known)
    if kind is _Made:
        return _make(known, args)
    if kind is int:
        return args[known]
    return kind([_again(each, args) for each in known])


def _make(made: _Made, args: Sequence[Any]) -> Any:
    """A fake tensor as FakeTensor.__new__ makes them (fake_tensor.py:856 of torch 2.13)."""
    with torch._C._DisableTorchDispatch():
        inner = EMPTY(made.shape, made.stride, dtype=made.dtype, device="meta")
        if made.argument is not None:
            of = args[made.argument]
            offset = of.storage_offset() + made.offset
            inner.set_(of.untyped_storage(), offset, made.shape, made.stride)
        tensor = SUBCLASS(
            FakeTensor, inner, False, dispatch_device=True, device_for_backend_keys=STANDIN
        )
    torch._C._set_warn_deprecated_on_mutable_data_ptr(tensor)
    vars(tensor).update(made.attributes)
    return tensor
