"""DeepSeek-V3, V3.1 and R1, Kimi-K2: latent attention, a shared expert, sigmoid scores.

transformers builds no multi-token-prediction layer (``num_nextn_predict_layers``) and keeps the
router's ``e_score_correction_bias`` as a buffer, so neither is among the parameters.

Source: transformers 5.23 models/deepseek_v3/configuration_deepseek_v3.py, modeling_deepseek_v3.py.
"""

from dataclasses import replace

from planner.model.decoder import decoder, num_layers, read_frame, read_mlp
from planner.model.description import Mlp, Model, Moe
from planner.model.keys import Keys
from planner.model.latent import latent_attention, latent_block
from planner.model.mixture import dense_first, expert_groups, top_k


def build(keys: Keys) -> Model:
    """Read a ``DeepseekV3Config``."""
    frame = read_frame(keys, "DeepseekV3ForCausalLM", positions=4096)
    attention = latent_attention(keys)
    sparse = dense_first(keys, num_layers(keys), default=3)
    mlp = read_mlp(keys)
    blocks = {
        False: latent_block(frame.hidden, attention, mlp),
        True: latent_block(
            frame.hidden, attention, read_experts(keys, mlp, groups=(8, 4), scaling=2.5)
        ),
    }
    return decoder(keys, frame, [blocks[has_experts] for has_experts in sparse])


def read_experts(keys: Keys, dense: Mlp, *, groups: tuple[int, int], scaling: float) -> Moe:
    """Read experts with sigmoid scores, as GLM-4.5 has them too; the rest are class defaults."""
    num_experts, width = keys.size("n_routed_experts"), keys.size("moe_intermediate_size")
    per_token = top_k(keys, num_experts, default=8)
    num_groups, chosen = expert_groups(keys, num_experts, default=groups, per_token=per_token)
    return Moe(
        num_experts=num_experts,
        experts_per_token=per_token,
        expert=replace(dense, ffn_size=width),
        shared=replace(dense, ffn_size=width * keys.size("n_shared_experts", default=1)),
        score="sigmoid",
        router_fp32=True,
        score_correction=True,
        normalize=keys.flag("norm_topk_prob", default=True),
        num_groups=num_groups,
        groups_per_token=chosen,
        scaling_factor=keys.number("routed_scaling_factor", default=scaling, low=0.0, high=1e6),
    )
