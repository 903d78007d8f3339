"""Attention as transformers runs it: rotary positions, repeated heads, the two kernels."""

from planner.activations.eager import (
    Machine,
    Tensor,
    add,
    attention,
    cat,
    contiguous,
    dropout,
    expand,
    matmul,
    mul,
    narrow,
    neg,
    reshape,
    scale,
    softmax,
    to,
    transpose,
    unsqueeze,
)
from planner.activations.programs.case import Case


def rotate_half(x: Tensor) -> Tensor:
    """``rotate_half``, models/llama/modeling_llama.py."""
    half = x.shape[-1] // 2
    x1 = narrow(x, -1, half)
    x2 = narrow(x, -1, half)
    return cat([neg(x2), x1], -1)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """``apply_rotary_pos_emb``, models/llama/modeling_llama.py."""
    cos = unsqueeze(cos, 1)
    sin = unsqueeze(sin, 1)
    q_embed = add(mul(q, cos), mul(rotate_half(q), sin))
    k_embed = add(mul(k, cos), mul(rotate_half(k), sin))
    return q_embed, k_embed


def repeat_kv(x: Tensor, times: int) -> Tensor:
    """``repeat_kv``: a copy for every query head."""
    if times == 1:
        return x
    batch, heads, length, size = x.shape
    x = expand(unsqueeze(x, 2), batch, heads, times, length, size)
    return reshape(x, batch, heads * times, length, size)


def eager_attention(
    case: Case, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``eager_attention_forward``, models/llama/modeling_llama.py."""
    times = query.shape[1] // key.shape[1]
    key_states = repeat_kv(key, times)
    value_states = repeat_kv(value, times)
    weights = scale(matmul(query, transpose(key_states, 2, 3)))
    if mask is not None:
        weights = add(weights, mask)
    weights = to(softmax(weights, "fp32"), query.dtype)
    weights = dropout(weights, case.probability(case.attention.dropout))
    output = matmul(weights, value_states)
    output = contiguous(transpose(output, 1, 2))
    return output, weights


def sdpa_attention(
    case: Case, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, None]:
    """``sdpa_attention_forward``, integrations/sdpa_attention.py: heads are repeated with a mask."""
    times = query.shape[1] // key.shape[1]
    if times > 1 and not (mask is None and key.shape[-1] == value.shape[-1] <= 256):
        key = repeat_kv(key, times)
        value = repeat_kv(value, times)
    probability = case.probability(case.attention.dropout)
    output = attention(query, key, value, mask=mask, probability=probability)
    output = contiguous(transpose(output, 1, 2))
    return output, None


def attend(
    m: Machine, case: Case, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The attention function that the configuration asks for."""
    with m.part("attention.core"):
        if case.training.attention == "eager":
            mask = m.uncounted(case.mask_shape, case.dtype)
            return eager_attention(case, query, key, value, mask)
        return sdpa_attention(case, query, key, value, None)
