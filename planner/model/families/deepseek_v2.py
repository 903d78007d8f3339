"""DeepSeek-V2 and V2-Lite: latent attention, shared experts, softmax scores.

A file without ``q_lora_rank`` gets the class default 1536; V2-Lite must say null. transformers
neither normalises the chosen weights nor reads ``moe_layer_freq``.

Source: transformers 5.23 models/deepseek_v2/configuration_deepseek_v2.py, modeling_deepseek_v2.py.
"""

from dataclasses import replace

from planner.model.decoder import decoder, num_layers, read_frame, read_mlp
from planner.model.description import Mlp, Model, Moe
from planner.model.keys import Keys
from planner.model.latent import latent_attention, latent_block
from planner.model.mixture import dense_first, expert_groups, top_k


def build(keys: Keys) -> Model:
    """Read a ``DeepseekV2Config``."""
    frame = read_frame(keys, "DeepseekV2ForCausalLM", positions=2048)
    attention = latent_attention(keys)
    sparse = dense_first(keys, num_layers(keys), default=0)
    mlp = read_mlp(keys, bias=keys.flag("mlp_bias", default=False))
    blocks = {
        False: latent_block(frame.hidden, attention, mlp),
        True: latent_block(frame.hidden, attention, _experts(keys, mlp)),
    }
    return decoder(keys, frame, [blocks[has_experts] for has_experts in sparse])


def _experts(keys: Keys, dense: Mlp) -> Moe:
    num_experts, width = keys.size("n_routed_experts"), keys.size("moe_intermediate_size")
    per_token = top_k(keys, num_experts)
    groups, chosen = 1, 1
    if keys.word("topk_method", default="greedy") == "group_limited_greedy":
        groups, chosen = expert_groups(keys, num_experts, default=(1, 1), per_token=per_token)
    return Moe(
        num_experts=num_experts,
        experts_per_token=per_token,
        expert=replace(dense, ffn_size=width, bias=False),
        shared=replace(dense, ffn_size=width * keys.size("n_shared_experts", default=2)),
        router_fp32=True,
        num_groups=groups,
        groups_per_token=chosen,
        scaling_factor=keys.number("routed_scaling_factor", default=1.0, low=0.0, high=1e6),
    )
