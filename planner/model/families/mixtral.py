"""Mixtral: Mistral's attention, a router and experts in every block.

Source: transformers 5.23 models/mixtral/configuration_mixtral.py, modeling_mixtral.py.
"""

from planner.model import parts
from planner.model.decoder import block, decoder, num_layers, read_frame, read_mlp, two_norms
from planner.model.description import Model, Moe
from planner.model.grouped import grouped_attention, windowed
from planner.model.keys import Keys
from planner.model.mixture import top_k


def build(keys: Keys) -> Model:
    """Read a ``MixtralConfig``."""
    frame = read_frame(keys, "MixtralForCausalLM", positions=131_072)
    window = keys.optional_size("sliding_window")
    attention = windowed(grouped_attention(keys, frame.hidden, kv_heads=8), window)
    num_experts = keys.size("num_local_experts", "num_experts")
    moe = Moe(
        num_experts=num_experts,
        experts_per_token=top_k(keys, num_experts, default=2),
        expert=read_mlp(keys),
        normalize=True,
    )
    parameters = parts.join(
        (
            parts.projections("self_attn.", frame.hidden, attention),
            parts.router("mlp.gate", frame.hidden, moe),
            parts.experts("mlp.experts.", frame.hidden, moe),
            two_norms(frame.hidden),
        )
    )
    blocks = [block(parameters, attention=attention, mlp=moe)] * num_layers(keys)
    return decoder(keys, frame, blocks)
