"""Bloom's block: each branch adds its residual itself, while its module's locals are alive.

Source, transformers 5.23: models/bloom/modeling_bloom.py, BloomBlock (line 348), BloomAttention
(245) and BloomMLP (325).
"""

from planner.activations.eager import (
    Machine,
    Tensor,
    add,
    bmm,
    dropout,
    permute,
    reshape,
    select,
    softmax,
    to,
    transpose,
    view,
)
from planner.activations.eager.pieces import biased_product, bloom_gelu
from planner.activations.programs.case import Case
from planner.activations.programs.modules import dropped, normalise, project
from planner.activations.programs.shared import Shared

Attended = tuple[Tensor, Tensor]
"""Hidden states, and the probabilities that the block returns beside them."""


def block(m: Machine, case: Case, hidden: Tensor, shared: Shared, norms: list[str]) -> Tensor:
    """``BloomBlock.forward``; ``norms``: names in the order of use."""
    residual = hidden
    normed = normalise(m, case.norm, hidden, norms[0])
    attended, weights = m.module(
        "self_attention", lambda x, y: _attention(m, case, x, y, shared), normed, residual
    )
    normed = normalise(m, case.norm, attended, norms[1])
    with m.part("mlp"):
        output = m.module("mlp", lambda x, y: _mlp(m, case, x, y), normed, attended)
    shared.returned.append(weights)
    return output


def _attention(
    m: Machine, case: Case, hidden: Tensor, residual: Tensor, shared: Shared
) -> Attended:
    """``BloomAttention.forward``: the bias enters the product of queries and keys."""
    batch, length, _ = hidden.shape
    size = case.attention.head_size
    with m.part("attention.qkv"):
        fused = project(m, hidden, case.module("attention.qkv"))
        apart = view(fused, batch, length, -1, 3, size)
        query, key, value = (transpose(select(apart, 3), 1, 2) for _ in range(3))
    with m.part("attention.core"):
        mask = shared.attention_mask(m, case)
        count = query.shape[1]
        query = reshape(query, batch * count, -1, size)
        key = transpose(reshape(key, batch * count, -1, size), 1, 2)
        value = reshape(value, batch * count, -1, size)
        scores = biased_product(query, key)
        weights = view(scores, batch, count, length, -1)
        if mask is not None:
            weights = add(weights, mask)
        probabilities = to(softmax(weights, "fp32"), query.dtype)
        probabilities = dropout(probabilities, case.probability(case.attention.dropout))
        context = bmm(view(probabilities, batch * count, length, -1), value)
        context = permute(view(context, batch, count, length, size), 0, 2, 1, 3)
        context = reshape(context, batch, length, count * size)
    with m.part("attention.o"):
        output = project(m, context, case.module("attention.o"))
        output = add(residual, dropped(m, case, output))
    return output, probabilities


def _mlp(m: Machine, case: Case, hidden: Tensor, residual: Tensor) -> Tensor:
    """``BloomMLP.forward``."""
    up, down = (case.module("mlp", place) for place in range(2))
    hidden = bloom_gelu(project(m, hidden, up))
    lowered = project(m, hidden, down)
    return add(residual, dropped(m, case, lowered))
