"""Rotary positions where they differ from Llama's: a part of the head, pairs, halves, fp32.

Sources, transformers 5.23: ``apply_rotary_pos_emb`` in models/gpt_neox/modeling_gpt_neox.py:107,
models/phi3/modeling_phi3.py:159, models/glm/modeling_glm.py:158,
models/olmo2/modeling_olmo2.py:154,
models/gpt_oss/modeling_gpt_oss.py:207; PhiAttention.forward in models/phi/modeling_phi.py.
"""

from planner.activations.eager import (
    Tensor,
    add,
    cat,
    mul,
    narrow,
    neg,
    split,
    sub,
    to,
    unsqueeze,
)
from planner.activations.eager.pieces import interleave, repeat_each
from planner.activations.programs.case import Case
from planner.activations.programs.hf_attention import rotate, rotate_half

Pair = tuple[Tensor, Tensor]
CUT_ALWAYS = {"gpt_neox", "phi", "phi3", "glm", "glm4", "glm4_moe"}
"""Their code cuts the rotated part off and joins it again, even where it is the whole head."""
IN_PAIRS = {"glm", "glm4"}


def rotated(case: Case, heads: Pair, cos: Tensor, sin: Tensor, keep: list[Tensor]) -> Pair:
    """Queries and keys with their positions; ``keep``: what the attention's locals hold on to."""
    q, k = heads
    del heads
    if case.attention.sinks:
        return _rotate_halves(q, k, cos, sin)
    if case.family == "olmo2":
        return _rotate_wide(q, k, cos, sin)
    size = case.attention.rotary_size
    if case.family in CUT_ALWAYS or size != q.shape[-1]:
        return _rotate_part(case, (q, k), cos, sin, keep)
    return rotate(q, k, cos, sin)


def _rotate_part(case: Case, heads: Pair, cos: Tensor, sin: Tensor, keep: list[Tensor]) -> Pair:
    q, k = heads
    del heads
    cos, sin = unsqueeze(cos, 1), unsqueeze(sin, 1)
    if case.family in IN_PAIRS:
        cos, sin = _doubled(cos), _doubled(sin)
    size = cos.shape[-1]
    q_rot, q_pass = _front(q, size), narrow(q, -1, q.shape[-1] - size)
    k_rot, k_pass = _front(k, size), narrow(k, -1, k.shape[-1] - size)
    turn = _half_in_pairs if case.family in IN_PAIRS else rotate_half
    if case.family == "phi3":
        q_embed = cat([add(mul(q_rot, cos), mul(turn(q_rot), sin)), q_pass], -1)
        k_embed = cat([add(mul(k_rot, cos), mul(turn(k_rot), sin)), k_pass], -1)
        return q_embed, k_embed
    q_embed = add(mul(q_rot, cos), mul(turn(q_rot), sin))
    k_embed = add(mul(k_rot, cos), mul(turn(k_rot), sin))
    if case.family == "phi":
        keep += [q_pass, k_pass, q_embed, k_embed]
    q_embed = cat([q_embed, q_pass], -1)
    k_embed = cat([k_embed, k_pass], -1)
    return q_embed, k_embed


def _front(x: Tensor, size: int) -> Tensor:
    """``x[..., :size]``; slicing all of a dim is no operation."""
    return x if size == x.shape[-1] else narrow(x, -1, size)


def _doubled(x: Tensor) -> Tensor:
    """Each of the first half's values twice."""
    return repeat_each(narrow(x, -1, x.shape[-1] // 2))


def _half_in_pairs(x: Tensor) -> Tensor:
    """``rotate_half`` of GLM: neighbours instead of halves."""
    x1 = narrow(x, -1, x.shape[-1] // 2, step=2)
    x2 = narrow(x, -1, x.shape[-1] // 2, step=2)
    return interleave(neg(x2), x1)


def _rotate_wide(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """OLMo 2: cos and sin stay in fp32, the result is cast back."""
    q_embed, k_embed = rotate(q, k, cos, sin)
    return to(q_embed, q.dtype), to(k_embed, k.dtype)


def _rotate_halves(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """gpt-oss: cos and sin have half of the head's size."""
    cos, sin = unsqueeze(cos, 1), unsqueeze(sin, 1)
    return _rotate_half_each(q, cos, sin), _rotate_half_each(k, cos, sin)


def _rotate_half_each(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first_half, second_half = split(x, (half, half), -1)
    first = sub(mul(first_half, cos), mul(second_half, sin))
    second = add(mul(second_half, cos), mul(first_half, sin))
    return cat([first, second], -1)
