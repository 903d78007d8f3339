"""StarCoder2: grouped-query attention, a plain MLP, biases, layer norms, a sliding window.

Source: transformers 5.23 models/starcoder2/configuration_starcoder2.py, modeling_starcoder2.py.
"""

from dataclasses import replace

from planner.model import parts
from planner.model.decoder import LAYER_NORM, block, decoder, num_layers, read_frame, two_norms
from planner.model.description import Mlp, Model
from planner.model.grouped import grouped_attention, windowed
from planner.model.keys import Keys


def build(keys: Keys) -> Model:
    """Read a ``Starcoder2Config``."""
    frame = replace(
        read_frame(keys, "Starcoder2ForCausalLM", positions=4096, tied=True, norm=LAYER_NORM),
        embedding_dropout=keys.dropout("embedding_dropout"),
    )
    bias = keys.flag("use_bias", default=True)
    attention = windowed(
        grouped_attention(keys, frame.hidden, kv_heads=2, bias=bias, output_bias=bias),
        keys.optional_size("sliding_window"),
    )
    mlp = Mlp(
        ffn_size=keys.size("intermediate_size"),
        gated=False,
        activation=keys.word("hidden_act", default="gelu_pytorch_tanh"),
        bias=bias,
    )
    parameters = parts.join(
        (
            parts.projections("self_attn.", frame.hidden, attention),
            parts.plain_mlp("mlp.", frame.hidden, mlp, names=("c_fc", "c_proj")),
            two_norms(frame.hidden, LAYER_NORM),
        )
    )
    layer = block(
        parameters,
        attention=attention,
        mlp=mlp,
        norm=LAYER_NORM,
        hidden_dropout=keys.dropout("residual_dropout"),
    )
    return decoder(keys, frame, [layer] * num_layers(keys))
