"""GLM-4 in transformers' own form (``glm``): fused gate and up, half of each head rotated.

Source: transformers 5.23 models/glm/configuration_glm.py, modeling_glm.py.
"""

from dataclasses import replace

from planner.model.decoder import decoder, gated_block, num_layers, read_frame, read_mlp
from planner.model.description import Attention, Mlp, Model
from planner.model.grouped import grouped_attention
from planner.model.keys import Keys


def build(keys: Keys) -> Model:
    """Read a ``GlmConfig``."""
    frame = read_frame(keys, "GlmForCausalLM", positions=131_072)
    attention, mlp = half_rotated(keys, frame.hidden)
    return decoder(keys, frame, [gated_block(frame.hidden, attention, mlp)] * num_layers(keys))


def half_rotated(keys: Keys, hidden: int) -> tuple[Attention, Mlp]:
    """Read attention and MLP of GLM-4, before and since 0414."""
    bias = keys.flag("attention_bias", default=True)
    attention = grouped_attention(keys, hidden, kv_heads=2, head_size=128, bias=bias, rotary=0.5)
    return attention, replace(read_mlp(keys), fused_gate_up=True)
