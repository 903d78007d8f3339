"""Llama and its kin: rms-norm, separate q, k, v, rotary positions, a gated MLP.

Source: models/llama/modeling_llama.py of transformers 5.23; Mistral, Qwen2 and Qwen3 differ by
biases and by norms of q and k.
"""

from planner.activations.eager import Machine, Tensor, add, mul, reshape, transpose, unary, view
from planner.activations.programs import hf_ends
from planner.activations.programs.case import Case, project
from planner.activations.programs.hf_attention import attend, rotate
from planner.activations.programs.norms import normalise
from planner.model.description import Mlp


def block(m: Machine, case: Case, hidden: Tensor) -> Tensor:
    """``LlamaDecoderLayer.forward``."""
    residual = hidden
    hidden = normalise(m, case.norm, hidden, "input_layernorm")
    hidden, _ = self_attention(m, case, hidden)
    hidden = add(residual, hidden)
    residual = hidden
    hidden = normalise(m, case.norm, hidden, "post_attention_layernorm")
    hidden = gated_mlp(m, case, hidden)
    return add(residual, hidden)


def self_attention(m: Machine, case: Case, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """``LlamaAttention.forward``."""
    facts = case.attention
    batch, length, _ = hidden.shape
    shape = (batch, length, -1, facts.head_size)
    with m.part("attention.q"):
        query = transpose(_normed(m, case, hidden, "self_attn.q", shape), 1, 2)
    with m.part("attention.k"):
        key = transpose(_normed(m, case, hidden, "self_attn.k", shape), 1, 2)
    with m.part("attention.v"):
        value = transpose(view(project(m, hidden, "self_attn.v_proj"), *shape), 1, 2)
    if facts.rotary_size:
        with m.part("attention.rotary"):
            cos, sin = position_embeddings(m, case)
            query, key = rotate(query, key, cos, sin)
    output, weights = attend(m, case, query, key, value)
    with m.part("attention.o"):
        output = reshape(output, batch, length, -1)
        output = project(m, output, "self_attn.o_proj")
    return output, weights


def _normed(
    m: Machine, case: Case, hidden: Tensor, name: str, shape: tuple[int, ...]
) -> Tensor:
    """A projection cut into heads, with the norm over each head that Qwen3 has."""
    heads = view(project(m, hidden, f"{name}_proj"), *shape)
    norm = case.attention.qk_norm
    return heads if norm is None else normalise(m, norm, heads, f"{name}_norm")


def position_embeddings(m: Machine, case: Case) -> tuple[Tensor, Tensor]:
    """cos and sin, (1, S, D): the stem computes them once for all blocks of a whole model."""
    if case.layout.pp > 1:
        return hf_ends.position_embeddings(m, case)
    shape = (1, case.length, case.attention.rotary_size)
    return m.uncounted(shape, case.dtype), m.uncounted(shape, case.dtype)


def gated_mlp(m: Machine, case: Case, hidden: Tensor) -> Tensor:
    """``LlamaMLP.forward``."""
    assert isinstance(case.mlp, Mlp)
    with m.part("mlp"):
        product = mul(
            unary(project(m, hidden, "mlp.gate_proj")), project(m, hidden, "mlp.up_proj")
        )
        return project(m, product, "mlp.down_proj")
