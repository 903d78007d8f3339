"""Qwen1.5, Qwen2 and Qwen2.5: Llama with biases on queries, keys and values.

Source: transformers 5.23 models/qwen2/configuration_qwen2.py, modeling_qwen2.py.
"""

from planner.model.decoder import decoder, gated_block, num_layers, read_frame, read_mlp
from planner.model.description import Model
from planner.model.grouped import grouped_attention, late_windows, windowed
from planner.model.keys import Keys


def build(keys: Keys) -> Model:
    """Read a ``Qwen2Config``."""
    frame = read_frame(keys, "Qwen2ForCausalLM", positions=32_768)
    attention = grouped_attention(keys, frame.hidden, kv_heads=32, bias=True)
    mlp = read_mlp(keys)
    windows = late_windows(keys, num_layers(keys))
    blocks = {
        window: gated_block(frame.hidden, windowed(attention, window), mlp)
        for window in set(windows)
    }
    return decoder(keys, frame, [blocks[window] for window in windows])
