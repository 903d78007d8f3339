"""Gemma: multi-query attention, wide heads, a scaled and tied embedding.

Source: transformers 5.23 models/gemma/configuration_gemma.py, modeling_gemma.py.
"""

from dataclasses import replace

from planner.model.decoder import Frame, decoder, gated_block, num_layers, read_frame
from planner.model.description import Mlp, Model, Norm
from planner.model.grouped import grouped_attention
from planner.model.keys import Keys

ONE_PLUS = Norm(kind="rms_one_plus")
TANH_GELU = "gelu_pytorch_tanh"


def build(keys: Keys) -> Model:
    """Read a ``GemmaConfig``."""
    frame = gemma_frame(keys, "GemmaForCausalLM", positions=8192)
    bias = keys.flag("attention_bias", default=False)
    attention = grouped_attention(
        keys, frame.hidden, kv_heads=16, head_size=256, bias=bias, output_bias=bias
    )
    causal = not keys.flag("use_bidirectional_attention", default=False)
    mlp = gemma_mlp(keys, "hidden_act")
    block = gated_block(frame.hidden, replace(attention, causal=causal), mlp, norm=ONE_PLUS)
    return decoder(keys, frame, [block] * num_layers(keys))


def gemma_frame(keys: Keys, implementation: str, *, positions: int) -> Frame:
    """Tied unless the file says otherwise, with the scaled embedding of all Gemmas."""
    frame = read_frame(keys, implementation, positions=positions, tied=True, norm=ONE_PLUS)
    return replace(frame, embedding_scale=True)


def gemma_mlp(keys: Keys, activation: str) -> Mlp:
    """Gated MLP; ``gelu`` of early files means its tanh form (configuration_gemma.py)."""
    word = keys.word(activation, default=TANH_GELU)
    return Mlp(
        ffn_size=keys.size("intermediate_size"),
        gated=True,
        activation=TANH_GELU if word == "gelu" and activation == "hidden_act" else word,
    )
