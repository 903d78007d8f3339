"""GLM-4-0414: GLM-4 with norms on both sides of each branch.

Source: transformers 5.23 models/glm4/configuration_glm4.py, modeling_glm4.py.
"""

from planner.model.decoder import decoder, gated_block, join_norms, num_layers, read_frame
from planner.model.description import Model
from planner.model.families.glm import half_rotated
from planner.model.keys import Keys

FOUR_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "post_self_attn_layernorm",
    "post_mlp_layernorm",
)


def build(keys: Keys) -> Model:
    """Read a ``Glm4Config``."""
    frame = read_frame(keys, "Glm4ForCausalLM", positions=131_072)
    attention, mlp = half_rotated(keys, frame.hidden)
    norms = join_norms(FOUR_NORMS, frame.hidden)
    block = gated_block(frame.hidden, attention, mlp, norms=norms, residual="sandwich")
    return decoder(keys, frame, [block] * num_layers(keys))
