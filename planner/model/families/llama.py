"""Llama 1 to 3, and what copies it (TinyLlama, SmolLM).

Source: transformers 5.23 models/llama/configuration_llama.py, modeling_llama.py.
"""

from planner.model.decoder import decoder, gated_block, num_layers, read_frame, read_mlp
from planner.model.description import Model
from planner.model.grouped import grouped_attention
from planner.model.keys import Keys


def build(keys: Keys) -> Model:
    """Read a ``LlamaConfig``."""
    frame = read_frame(keys, "LlamaForCausalLM", positions=2048, aliases=("LLaMAForCausalLM",))
    bias = keys.flag("attention_bias", default=False)
    attention = grouped_attention(keys, frame.hidden, bias=bias, output_bias=bias)
    mlp = read_mlp(keys, bias=keys.flag("mlp_bias", default=False))
    return decoder(keys, frame, [gated_block(frame.hidden, attention, mlp)] * num_layers(keys))
