"""Phi-3, Phi-3.5 and Phi-4: Llama with fused projections.

Source: transformers 5.23 models/phi3/configuration_phi3.py, modeling_phi3.py.
"""

from dataclasses import replace

from planner.model import parts
from planner.model.decoder import block, decoder, num_layers, read_frame, read_mlp, two_norms
from planner.model.description import Model
from planner.model.grouped import grouped_attention, windowed
from planner.model.keys import Keys


def build(keys: Keys) -> Model:
    """Read a ``Phi3Config``."""
    frame = read_frame(keys, "Phi3ForCausalLM", positions=4096)
    frame = replace(frame, embedding_dropout=keys.dropout("embd_pdrop"))
    attention = windowed(
        replace(grouped_attention(keys, frame.hidden), fused_qkv=True),
        keys.optional_size("sliding_window"),
    )
    mlp = replace(read_mlp(keys), fused_gate_up=True)
    queries = attention.num_heads * attention.head_size
    fused = queries + 2 * attention.num_kv_heads * attention.head_size
    hidden = frame.hidden
    parameters = parts.join(
        (
            parts.linear("self_attn.o_proj", queries, hidden, "attention.o", cut="row"),
            parts.linear("self_attn.qkv_proj", hidden, fused, "attention.qkv", cut="column"),
            parts.gated_mlp("mlp.", hidden, mlp),
            two_norms(hidden),
        )
    )
    layer = block(
        parameters, attention=attention, mlp=mlp, hidden_dropout=keys.dropout("resid_pdrop")
    )
    return decoder(keys, frame, [layer] * num_layers(keys))
