"""BLOOM: ALiBi positions, fused qkv, a norm right after the embedding.

Source: transformers 5.23 models/bloom/configuration_bloom.py, modeling_bloom.py.
"""

from planner.model import parts
from planner.model.decoder import (
    LAYER_NORM,
    Frame,
    assemble,
    block,
    last_head,
    last_norm,
    num_layers,
    numbered,
    trained_class,
)
from planner.model.description import Attention, Layer, Mlp, Model, Placed
from planner.model.keys import Keys


def build(keys: Keys) -> Model:
    """Read a ``BloomConfig``."""
    frame = Frame(
        implementation=trained_class(keys, "BloomForCausalLM"),
        hidden=keys.size("n_embed", "hidden_size"),
        vocab=keys.size("vocab_size"),
        positions=keys.size("seq_length", default=2048),
        tied=keys.flag("tie_word_embeddings", default=True),
        norm=LAYER_NORM,
        prefix="transformer.",
        last_norm="ln_f",
    )
    layers = [_block(keys, frame.hidden)] * num_layers(keys, "n_layer", "num_hidden_layers")
    keys.finish()
    stem = Layer(
        kind="stem",
        parameters=parts.embedding("word_embeddings", frame.vocab, frame.hidden)
        + parts.norm("word_embeddings_layernorm", frame.hidden, LAYER_NORM),
        norm=LAYER_NORM,
        embedding_norm=True,
    )
    return assemble(
        keys,
        frame,
        stem=Placed(prefix=frame.prefix, layer=stem),
        blocks=numbered("transformer.h.", layers),
        tail=(last_norm(frame), last_head(frame)),
    )


def _block(keys: Keys, hidden: int) -> Layer:
    keys.only(
        "apply_residual_connection_post_layernorm",
        allowed=False,
        why="a residual that starts before the norm is",
    )
    attention = _attention(keys, hidden)
    mlp = Mlp(ffn_size=4 * hidden, gated=False, activation="bloom_gelu", bias=True)
    fused = 3 * hidden
    attend = "self_attention."
    parameters = parts.join(
        (
            parts.norm("input_layernorm", hidden, LAYER_NORM),
            parts.linear(
                f"{attend}query_key_value", hidden, fused, "attention.qkv", bias=True, cut="column"
            ),
            parts.linear(f"{attend}dense", hidden, hidden, "attention.o", bias=True, cut="row"),
            parts.norm("post_attention_layernorm", hidden, LAYER_NORM),
            parts.plain_mlp("mlp.", hidden, mlp, names=("dense_h_to_4h", "dense_4h_to_h")),
        )
    )
    return block(
        parameters,
        attention=attention,
        mlp=mlp,
        norm=LAYER_NORM,
        hidden_dropout=keys.dropout("hidden_dropout"),
    )


def _attention(keys: Keys, hidden: int) -> Attention:
    heads = keys.size("n_head", "num_attention_heads")
    keys.divides(heads, hidden, names=("n_head", "hidden_size"))
    size = max(1, hidden // heads)
    return Attention(
        num_heads=heads,
        num_kv_heads=heads,
        head_size=size,
        value_head_size=size,
        fused_qkv=True,
        bias=True,
        output_bias=True,
        alibi=True,
        dropout=keys.dropout("attention_dropout"),
    )
