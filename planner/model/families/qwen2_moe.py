"""Qwen1.5-MoE and Qwen2-MoE: Qwen2's attention, experts, a shared expert behind a gate.

Source: transformers 5.23 models/qwen2_moe/configuration_qwen2_moe.py, modeling_qwen2_moe.py.
"""

from dataclasses import replace

from planner.model import parts
from planner.model.decoder import (
    block,
    decoder,
    gated_block,
    num_layers,
    read_frame,
    read_mlp,
    two_norms,
)
from planner.model.description import Attention, Layer, Mlp, Model, Moe
from planner.model.grouped import KINDS, grouped_attention, layer_kinds, windowed
from planner.model.keys import Keys
from planner.model.mixture import sparse_blocks, top_k


def build(keys: Keys) -> Model:
    """Read a ``Qwen2MoeConfig``."""
    frame = read_frame(keys, "Qwen2MoeForCausalLM", positions=32_768)
    layers = num_layers(keys)
    attention = grouped_attention(
        keys, frame.hidden, kv_heads=16, bias=keys.flag("qkv_bias", default=True)
    )
    mlp = read_mlp(keys)
    mlps: dict[bool, Mlp | Moe] = {False: mlp, True: _experts(keys, mlp)}
    kinds = tuple(zip(_windows(keys, layers), sparse_blocks(keys, layers), strict=True))
    blocks = {
        (window, sparse): _block(frame.hidden, windowed(attention, window), mlps[sparse])
        for window, sparse in set(kinds)
    }
    return decoder(keys, frame, [blocks[kind] for kind in kinds])


def _windows(keys: Keys, layers: int) -> tuple[int | None, ...]:
    """Every other block from the first on, below ``max_window_layers``."""
    window = keys.optional_size("sliding_window", default=4096)
    if not keys.flag("use_sliding_window", default=False):
        window = None
    end = keys.count("max_window_layers", default=28)
    slides = tuple(window is not None and i % 2 == 0 and i < end for i in range(layers))
    kinds = layer_kinds(keys, layers, tuple(KINDS[sliding] for sliding in slides))
    return tuple(window if kind == KINDS[1] else None for kind in kinds)


def _experts(keys: Keys, dense: Mlp) -> Moe:
    num_experts = keys.size("num_experts", "num_local_experts")
    shared = keys.size("shared_expert_intermediate_size", default=5632)
    return Moe(
        num_experts=num_experts,
        experts_per_token=top_k(keys, num_experts, default=4),
        expert=replace(dense, ffn_size=keys.size("moe_intermediate_size")),
        shared=replace(dense, ffn_size=shared),
        shared_gate=True,
        normalize=keys.flag("norm_topk_prob", default=False),
    )


def _block(hidden: int, attention: Attention, mlp: Mlp | Moe) -> Layer:
    if isinstance(mlp, Mlp):
        return gated_block(hidden, attention, mlp)
    shared = "mlp.shared_expert"
    parameters = parts.join(
        (
            parts.projections("self_attn.", hidden, attention),
            parts.router("mlp.gate", hidden, mlp),
            parts.experts("mlp.experts.", hidden, mlp),
            parts.gated_mlp(f"{shared}.", hidden, mlp.shared, "shared_experts")
            if mlp.shared
            else (),
            parts.linear(f"{shared}_gate", hidden, 1, "shared_experts"),
            two_norms(hidden),
        )
    )
    return block(parameters, attention=attention, mlp=mlp)
