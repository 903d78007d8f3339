"""Qwen3-MoE: Qwen3's attention, experts without a shared one.

Source: transformers 5.23 models/qwen3_moe/configuration_qwen3_moe.py, modeling_qwen3_moe.py.
"""

from dataclasses import replace

from planner.model import parts
from planner.model.decoder import (
    RMS,
    block,
    decoder,
    gated_block,
    num_layers,
    read_frame,
    read_mlp,
    two_norms,
)
from planner.model.description import Attention, Mlp, Model, Moe
from planner.model.grouped import grouped_attention, windowed
from planner.model.keys import Keys
from planner.model.mixture import sparse_blocks, top_k


def build(keys: Keys) -> Model:
    """Read a ``Qwen3MoeConfig``."""
    frame = read_frame(keys, "Qwen3MoeForCausalLM", positions=32_768)
    attention = _attention(keys, frame.hidden)
    mlp = read_mlp(keys)
    moe = _experts(keys, mlp)
    parameters = parts.join(
        (
            parts.projections("self_attn.", frame.hidden, attention),
            parts.qk_norms("self_attn.", attention),
            parts.experts("mlp.experts.", frame.hidden, moe),
            parts.router("mlp.gate", frame.hidden, moe),
            two_norms(frame.hidden),
        )
    )
    blocks = {
        False: gated_block(frame.hidden, attention, mlp),
        True: block(parameters, attention=attention, mlp=moe),
    }
    sparse = sparse_blocks(keys, num_layers(keys))
    return decoder(keys, frame, [blocks[has_experts] for has_experts in sparse])


def _attention(keys: Keys, hidden: int) -> Attention:
    bias = keys.flag("attention_bias", default=False)
    attention = grouped_attention(keys, hidden, kv_heads=4, bias=bias, output_bias=bias)
    window = keys.optional_size("sliding_window", default=4096)
    if not keys.flag("use_sliding_window", default=False):
        window = None
    return windowed(replace(attention, qk_norm=RMS), window)


def _experts(keys: Keys, dense: Mlp) -> Moe:
    num_experts = keys.size("num_experts", "num_local_experts")
    return Moe(
        num_experts=num_experts,
        experts_per_token=top_k(keys, num_experts, default=8),
        expert=replace(dense, ffn_size=keys.size("moe_intermediate_size")),
        normalize=keys.flag("norm_topk_prob", default=False),
    )
