"""GPT-NeoX and Pythia: fused qkv, attention and MLP side by side, each behind its own norm.

Source: transformers 5.23 models/gpt_neox/configuration_gpt_neox.py, modeling_gpt_neox.py.
"""

from dataclasses import replace

from planner.model import parts
from planner.model.decoder import (
    LAYER_NORM,
    assemble,
    block,
    join_norms,
    last_head,
    last_norm,
    num_layers,
    numbered,
    read_frame,
)
from planner.model.description import Attention, Layer, Mlp, Model, Placed
from planner.model.grouped import grouped_attention
from planner.model.keys import Keys


def build(keys: Keys) -> Model:
    """Read a ``GPTNeoXConfig``."""
    frame = replace(
        read_frame(keys, "GPTNeoXForCausalLM", positions=2048, norm=LAYER_NORM),
        prefix="gpt_neox.",
        last_norm="final_layer_norm",
    )
    layers = [_block(keys, frame.hidden)] * num_layers(keys)
    keys.finish()
    stem = Layer(
        kind="stem",
        parameters=parts.embedding("embed_in", frame.vocab, frame.hidden),
        hidden_dropout=keys.dropout("hidden_dropout"),
    )
    return assemble(
        keys,
        frame,
        stem=Placed(prefix=frame.prefix, layer=stem),
        blocks=numbered("gpt_neox.layers.", layers),
        tail=(last_norm(frame), last_head(frame)),
    )


def _block(keys: Keys, hidden: int) -> Layer:
    attention = _attention(keys, hidden)
    mlp = Mlp(
        ffn_size=keys.size("intermediate_size"),
        gated=False,
        activation=keys.word("hidden_act", default="gelu"),
        bias=True,
    )
    fused, bias = 3 * hidden, attention.bias
    parameters = parts.join(
        (
            join_norms(("input_layernorm", "post_attention_layernorm"), hidden, LAYER_NORM),
            parts.linear(
                "attention.query_key_value", hidden, fused, "attention.qkv", bias=bias, cut="column"
            ),
            parts.linear("attention.dense", hidden, hidden, "attention.o", bias=bias, cut="row"),
            parts.plain_mlp("mlp.", hidden, mlp, names=("dense_h_to_4h", "dense_4h_to_h")),
        )
    )
    side_by_side = keys.flag("use_parallel_residual", default=True)
    return block(
        parameters,
        attention=attention,
        mlp=mlp,
        norm=LAYER_NORM,
        residual="parallel_two_norms" if side_by_side else "pre",
        hidden_dropout=keys.dropout("hidden_dropout"),
    )


def _attention(keys: Keys, hidden: int) -> Attention:
    bias = keys.flag("attention_bias", default=True)
    share = keys.number("rotary_pct", default=0.25, low=0.0, high=1.0)
    attention = grouped_attention(keys, hidden, bias=bias, output_bias=bias, rotary=share)
    heads = attention.num_heads
    return replace(attention, num_kv_heads=heads, fused_qkv=True)
