"""Qwen3: Llama with norms on every head's queries and keys, and a head size of its own.

Source: transformers 5.23 models/qwen3/configuration_qwen3.py, modeling_qwen3.py.
"""

from dataclasses import replace

from planner.model.decoder import RMS, decoder, gated_block, num_layers, read_frame, read_mlp
from planner.model.description import Model
from planner.model.grouped import grouped_attention, late_windows, windowed
from planner.model.keys import Keys


def build(keys: Keys) -> Model:
    """Read a ``Qwen3Config``."""
    frame = read_frame(keys, "Qwen3ForCausalLM", positions=32_768)
    bias = keys.flag("attention_bias", default=False)
    attention = replace(
        grouped_attention(
            keys, frame.hidden, kv_heads=32, head_size=128, bias=bias, output_bias=bias
        ),
        qk_norm=RMS,
    )
    mlp = read_mlp(keys)
    windows = late_windows(keys, num_layers(keys))
    blocks = {
        window: gated_block(frame.hidden, windowed(attention, window), mlp)
        for window in set(windows)
    }
    return decoder(keys, frame, [blocks[window] for window in windows])
