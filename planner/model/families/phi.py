"""Phi-1, 1.5 and 2: attention and MLP side by side behind one norm, biases everywhere.

Source: transformers 5.23 models/phi/configuration_phi.py, modeling_phi.py.
"""

from dataclasses import replace

from planner.model import parts
from planner.model.decoder import LAYER_NORM, block, decoder, num_layers, read_frame
from planner.model.description import Mlp, Model
from planner.model.grouped import grouped_attention
from planner.model.keys import Keys


def build(keys: Keys) -> Model:
    """Read a ``PhiConfig``."""
    frame = replace(
        read_frame(keys, "PhiForCausalLM", positions=2048, norm=LAYER_NORM),
        last_norm="final_layernorm",
        head_bias=True,
        embedding_dropout=keys.dropout("embd_pdrop"),
    )
    attention = grouped_attention(keys, frame.hidden, bias=True, output_bias=True, rotary=0.5)
    if keys.flag("qk_layernorm", default=False):
        attention = replace(attention, qk_norm=LAYER_NORM)
    mlp = Mlp(
        ffn_size=keys.size("intermediate_size"),
        gated=False,
        activation=keys.word("hidden_act", default="gelu_new"),
        bias=True,
    )
    parameters = parts.join(
        (
            parts.projections("self_attn.", frame.hidden, attention, output="dense"),
            parts.qk_norms("self_attn.", attention, names=("q_layernorm", "k_layernorm")),
            parts.plain_mlp("mlp.", frame.hidden, mlp, names=("fc1", "fc2")),
            parts.norm("input_layernorm", frame.hidden, LAYER_NORM),
        )
    )
    layer = block(
        parameters,
        attention=attention,
        mlp=mlp,
        norm=LAYER_NORM,
        residual="parallel_one_norm",
        hidden_dropout=keys.dropout("resid_pdrop"),
    )
    return decoder(keys, frame, [layer] * num_layers(keys))
