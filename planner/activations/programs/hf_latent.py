"""Multi-head latent attention as transformers runs it: expanded keys and values.

Sources, transformers 5.23: DeepseekV3Attention in models/deepseek_v3/modeling_deepseek_v3.py,
DeepseekV2Attention in models/deepseek_v2/modeling_deepseek_v2.py.
"""

from planner.activations.eager import (
    Machine,
    Tensor,
    add,
    assemble,
    cat,
    contiguous,
    expand,
    mul,
    narrow,
    reshape,
    split,
    sub,
    to,
    transpose,
    unsqueeze,
    view,
)
from planner.activations.eager.pieces import complex_product
from planner.activations.programs.case import Case
from planner.activations.programs.hf_attention import attend, rotate
from planner.activations.programs.modules import normalise, project
from planner.activations.programs.shared import Shared
from planner.model.description import LatentAttention


def latent_attention(
    m: Machine, case: Case, hidden: Tensor, shared: Shared
) -> tuple[Tensor, Tensor | None]:
    """``DeepseekV3Attention.forward``."""
    facts, latent = case.attention, case.attention.latent
    assert latent is not None
    batch, length, _ = hidden.shape
    with m.part("attention.q"):
        queries = _queries(m, case, latent, hidden)
        queries = transpose(view(queries, batch, length, -1, facts.head_size), 1, 2)
        q_pass, q_rot = split(queries, (latent.nope_head_size, latent.rope_head_size), -1)
    with m.part("attention.kv_down"):
        compressed = project(m, hidden, case.module("attention.kv_down"))
        kv_nope, k_rot = split(compressed, (latent.kv_rank, latent.rope_head_size), -1)
        kv_nope = normalise(m, case.norm, kv_nope, "self_attn.kv_a_layernorm")
        kv_nope = view(kv_nope, batch, 1, length, latent.kv_rank)
        k_rot = view(k_rot, batch, 1, length, latent.rope_head_size)
    with m.part("attention.rotary"):
        cos, sin = shared.position_embeddings(m, case)
        q_rot, k_rot = _rotated(case, q_rot, k_rot, cos, sin)
        query = cat([q_pass, q_rot], -1)
    with m.part("attention.kv_up"):
        key, value = _expanded(m, case, latent, kv_nope, k_rot)
    output, weights = attend(m, case, query, key, value, shared)
    with m.part("attention.o"):
        output = contiguous(reshape(output, batch, length, -1))
        output = project(m, output, case.module("attention.o"))
    return output, weights


def _queries(m: Machine, case: Case, latent: LatentAttention, hidden: Tensor) -> Tensor:
    if latent.q_rank is None:
        return project(m, hidden, case.module("attention.q"))
    narrowed = normalise(
        m,
        case.norm,
        project(m, hidden, case.module("attention.q_down")),
        "self_attn.q_a_layernorm",
    )
    return project(m, narrowed, case.module("attention.q_up"))


def _expanded(
    m: Machine, case: Case, latent: LatentAttention, kv_nope: Tensor, k_rot: Tensor
) -> tuple[Tensor, Tensor]:
    """``expand_kv``: keys are written into new memory, values are a view."""
    batch, _, length, _ = kv_nope.shape
    facts = case.attention
    size = latent.nope_head_size + facts.value_head_size
    kv_nope = transpose(
        view(project(m, kv_nope, case.module("attention.kv_up")), batch, length, -1, size), 1, 2
    )
    k_nope, value = split(kv_nope, (latent.nope_head_size, facts.value_head_size), -1)
    k_rot = expand(k_rot, batch, k_nope.shape[1], length, latent.rope_head_size)
    key = assemble((*kv_nope.shape[:-1], facts.head_size), [k_nope, k_rot])
    return key, value


def _rotated(case: Case, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    if case.family == "deepseek_v3":
        return _rotate_interleaved(q, k, cos, sin)
    if case.family == "deepseek_v2":
        return _rotate_complex(q, k, cos)
    return rotate(q, k, cos, sin)


def _rotate_interleaved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """``apply_rotary_pos_emb_interleave``."""
    half = cos.shape[-1] // 2
    cos = unsqueeze(narrow(cos, -1, half), 1)
    sin = unsqueeze(narrow(sin, -1, half), 1)
    q1, q2 = _every_second(q), _every_second(q)
    k1, k2 = _every_second(k), _every_second(k)
    q_embed = cat([sub(mul(q1, cos), mul(q2, sin)), add(mul(q2, cos), mul(q1, sin))], -1)
    k_embed = cat([sub(mul(k1, cos), mul(k2, sin)), add(mul(k2, cos), mul(k1, sin))], -1)
    return q_embed, k_embed


def _every_second(x: Tensor) -> Tensor:
    """``x[..., 0::2]``."""
    return narrow(x, -1, x.shape[-1] // 2, step=2)


def _rotate_complex(q: Tensor, k: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    """``apply_rotary_emb``: pairs as complex fp32 numbers."""
    wide_q, wide_k = to(q, "fp32"), to(k, "fp32")
    turns = unsqueeze(turns, 1)
    q_out = to(complex_product(wide_q, turns), q.dtype)
    k_out = to(complex_product(wide_k, turns), k.dtype)
    return q_out, k_out
