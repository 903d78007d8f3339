"""Falcon: multi-query or grouped attention with a fused qkv, beside the MLP.

Source: transformers 5.23 models/falcon/configuration_falcon.py, and
modeling_falcon.py:200-240, 540-621.
"""

from planner.model import parts
from planner.model.decoder import (
    LAYER_NORM,
    Frame,
    assemble,
    block,
    join_norms,
    last_head,
    last_norm,
    num_layers,
    numbered,
    trained_class,
)
from planner.model.description import Attention, Layer, Mlp, Model, Placed, Residual
from planner.model.keys import Keys


def build(keys: Keys) -> Model:
    """Read a ``FalconConfig``."""
    frame = Frame(
        implementation=trained_class(keys, "FalconForCausalLM", aliases=("RWForCausalLM",)),
        hidden=keys.size("n_embed", "hidden_size"),
        vocab=keys.size("vocab_size"),
        positions=keys.size("max_position_embeddings", default=2048),
        tied=keys.flag("tie_word_embeddings", default=True),
        norm=LAYER_NORM,
        prefix="transformer.",
        last_norm="ln_f",
    )
    layers = [_block(keys, frame.hidden)] * num_layers(keys)
    keys.finish()
    stem = Layer(
        kind="stem", parameters=parts.embedding("word_embeddings", frame.vocab, frame.hidden)
    )
    return assemble(
        keys,
        frame,
        stem=Placed(prefix=frame.prefix, layer=stem),
        blocks=numbered("transformer.h.", layers),
        tail=(last_norm(frame), last_head(frame)),
    )


def _block(keys: Keys, hidden: int) -> Layer:
    bias = keys.flag("bias", default=False)
    attention = _attention(keys, hidden, bias=bias)
    mlp = Mlp(
        ffn_size=keys.size("ffn_hidden_size", default=4 * hidden),
        gated=False,
        activation=keys.word("activation", default="gelu"),
        bias=bias,
    )
    fused = (attention.num_heads + 2 * attention.num_kv_heads) * attention.head_size
    residual, norms = _norms(keys)
    attend = "self_attention."
    parameters = parts.join(
        (
            parts.linear(
                f"{attend}query_key_value", hidden, fused, "attention.qkv", bias=bias, cut="column"
            ),
            parts.linear(f"{attend}dense", hidden, hidden, "attention.o", bias=bias, cut="row"),
            parts.plain_mlp("mlp.", hidden, mlp, names=("dense_h_to_4h", "dense_4h_to_h")),
            join_norms(norms, hidden, LAYER_NORM),
        )
    )
    return block(
        parameters,
        attention=attention,
        mlp=mlp,
        norm=LAYER_NORM,
        residual=residual,
        hidden_dropout=keys.dropout("hidden_dropout"),
    )


def _attention(keys: Keys, hidden: int, *, bias: bool) -> Attention:
    heads = keys.size("num_attention_heads")
    keys.divides(heads, hidden, names=("num_attention_heads", "hidden_size"))
    groups = keys.size("num_kv_heads", default=heads)
    keys.divides(groups, heads, names=("num_kv_heads", "num_attention_heads"))
    if not keys.flag("new_decoder_architecture", default=False):
        groups = 1 if keys.flag("multi_query", default=True) else heads
    size = max(1, hidden // heads)
    alibi = keys.flag("alibi", default=False)
    return Attention(
        num_heads=heads,
        num_kv_heads=groups,
        head_size=size,
        value_head_size=size,
        fused_qkv=True,
        bias=bias,
        output_bias=bias,
        rotary_size=0 if alibi else size,
        alibi=alibi,
        dropout=keys.dropout("attention_dropout"),
    )


def _norms(keys: Keys) -> tuple[Residual, tuple[str, ...]]:
    """Join of the branches, and the norms in the order in which the block registers them."""
    new = keys.flag("new_decoder_architecture", default=False)
    count = keys.size("num_ln_in_parallel_attn", default=2 if new else 1)
    if not keys.flag("parallel_attn", default=True):
        if new:
            keys.only("parallel_attn", allowed=True, why="the new architecture in parallel is")
        return "pre", ("post_attention_layernorm", "input_layernorm")
    if new and count == 2:  # noqa: PLR2004  transformers compares with 2, and treats all else as 1
        return "parallel_two_norms", ("ln_attn", "ln_mlp")
    return "parallel_one_norm", ("input_layernorm",)
