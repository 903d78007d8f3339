"""Mistral: Llama with a sliding window.

Source: transformers 5.23 models/mistral/configuration_mistral.py, modeling_mistral.py.
"""

from planner.model.decoder import decoder, gated_block, num_layers, read_frame, read_mlp
from planner.model.description import Model
from planner.model.grouped import grouped_attention, windowed
from planner.model.keys import Keys


def build(keys: Keys) -> Model:
    """Read a ``MistralConfig``."""
    frame = read_frame(keys, "MistralForCausalLM", positions=131_072)
    window = keys.optional_size("sliding_window", default=4096)
    attention = windowed(grouped_attention(keys, frame.hidden, kv_heads=8), window)
    block = gated_block(frame.hidden, attention, read_mlp(keys))
    return decoder(keys, frame, [block] * num_layers(keys))
