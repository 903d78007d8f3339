"""DeepSpeed's Ulysses around a transformers attention: tokens for heads, and back.

Source: deepspeed 0.19.8 runtime/sequence_parallel/ulysses_sp.py:168-395 and
sequence/layer.py:327-375 (the exchange is an operator with a result of its own).
"""

from collections.abc import Callable

from planner.activations.eager import (
    Node,
    Tensor,
    begin,
    contiguous,
    empty,
    finish,
    permute,
    reshape,
)
from planner.activations.eager.pieces import repeat_heads
from planner.units import ceil_div

Core = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]


def ulysses(
    core: Core, ranks: int, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor | None]:
    """``UlyssesSPAttentionHF.forward``: (B, A, S/sp, D) in, (B, S/sp, A * D) out."""
    batch, length, size = query.shape[0], query.shape[2], value.shape[3]
    copies = ceil_div(ranks, key.shape[1])
    query = permute(query, 2, 0, 1, 3)
    key = permute(key, 2, 0, 1, 3)
    value = permute(value, 2, 0, 1, 3)
    gathered_ids = _position_ids(query, ranks)
    query_layer, key_layer, value_layer = (
        _combined(query, ranks, 1),
        _combined(key, ranks, copies),
        _combined(value, ranks, copies),
    )
    query_layer = contiguous(permute(query_layer, 1, 2, 0, 3))
    key_layer = contiguous(permute(key_layer, 1, 2, 0, 3))
    value_layer = contiguous(permute(value_layer, 1, 2, 0, 3))
    context, weights = core(query_layer, key_layer, value_layer)
    context = permute(context, 1, 0, 2, 3)
    context = reshape(context, ranks * length, batch, -1)
    output = _partitioned(context, ranks, size)
    output = permute(output, 1, 0, 2)
    output = reshape(output, *output.shape)
    del gathered_ids
    return output, weights


def _position_ids(query: Tensor, ranks: int) -> Tensor:
    """The position ids of all ranks, joined; they stay to the end of the call."""
    length, batch = query.shape[:2]
    pieces = [empty(query.machine, (batch, length), "int64") for _ in range(ranks)]
    whole = empty(query.machine, (batch, length * ranks), "int64")
    del pieces
    return whole


def _combined(x: Tensor, ranks: int, copies: int) -> Tensor:
    """``combine_sequence``: (S/sp, B, A, D) to (S, B, A/sp, D)."""
    if copies > 1:
        x = repeat_heads(x, copies)
    length, batch, heads, size = x.shape
    x = reshape(x, length, batch, ranks, heads // ranks, size)
    x = contiguous(permute(x, 2, 0, 1, 3, 4))
    output = all_to_all(x)
    return contiguous(reshape(output, ranks * length, batch, heads // ranks, size))


def _partitioned(x: Tensor, ranks: int, size: int) -> Tensor:
    """``_partition_global_sequence``: (S, B, A * D / sp) to (S/sp, B, A * D)."""
    del size
    length, batch, width = x.shape
    x = contiguous(reshape(x, ranks, length // ranks, batch, width))
    output = all_to_all(x)
    output = permute(output, 1, 2, 0, 3)
    return contiguous(reshape(output, length // ranks, batch, ranks * width))


def all_to_all(x: Tensor) -> Tensor:
    """``_dim_zero_all_to_all``."""
    node = begin(_all_to_all_back, x)
    x = contiguous(x)
    return finish(node, empty(x.machine, x.shape, x.dtype))


def _all_to_all_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    del node
    gradient = contiguous(gradient)
    return (empty(gradient.machine, gradient.shape, gradient.dtype),)
