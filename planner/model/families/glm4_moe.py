"""GLM-4.5 and 4.6: grouped-query attention, DeepSeek-V3's experts.

Source: transformers 5.23 models/glm4_moe/configuration_glm4_moe.py, modeling_glm4_moe.py.
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
from planner.model.description import Model
from planner.model.families.deepseek_v3 import read_experts
from planner.model.grouped import grouped_attention
from planner.model.keys import Keys
from planner.model.mixture import dense_first


def build(keys: Keys) -> Model:
    """Read a ``Glm4MoeConfig``."""
    frame = read_frame(keys, "Glm4MoeForCausalLM", positions=131_072)
    bias = keys.flag("attention_bias", default=False)
    attention = grouped_attention(keys, frame.hidden, kv_heads=8, bias=bias, rotary=0.5)
    if keys.flag("use_qk_norm", default=False):
        attention = replace(attention, qk_norm=RMS)
    sparse = dense_first(keys, num_layers(keys), default=1)
    mlp = read_mlp(keys)
    moe = read_experts(keys, mlp, groups=(1, 1), scaling=1.0)
    parameters = parts.join(
        (
            parts.projections("self_attn.", frame.hidden, attention),
            parts.qk_norms("self_attn.", attention),
            parts.mixture(frame.hidden, moe),
            two_norms(frame.hidden),
        )
    )
    blocks = {
        False: gated_block(frame.hidden, attention, mlp),
        True: block(parameters, attention=attention, mlp=moe),
    }
    return decoder(keys, frame, [blocks[has_experts] for has_experts in sparse])
