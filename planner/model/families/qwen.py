"""Qwen, the first release: fused qkv with biases, ``intermediate_size`` twice the MLP's width.

transformers has no class for it; names and shapes follow the authors' ``modeling_qwen.py``
(QwenLM/Qwen): ``w1`` and ``w2`` have half of ``intermediate_size`` each, there are as many key
heads as query heads. The totals equal the published ones.
"""

from planner.model import parts
from planner.model.decoder import (
    RMS,
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
    """Read a ``QWenConfig``."""
    frame = Frame(
        implementation=trained_class(keys, "QWenLMHeadModel"),
        hidden=keys.size("hidden_size"),
        vocab=keys.size("vocab_size"),
        positions=keys.size("seq_length", "max_position_embeddings", default=8192),
        tied=keys.flag("tie_word_embeddings", default=False),
        prefix="transformer.",
        last_norm="ln_f",
        embedding_dropout=keys.dropout("emb_dropout_prob"),
    )
    layers = [_block(keys, frame.hidden)] * num_layers(keys)
    keys.finish()
    stem = Layer(
        kind="stem",
        parameters=parts.embedding("wte", frame.vocab, frame.hidden),
        hidden_dropout=frame.embedding_dropout,
    )
    return assemble(
        keys,
        frame,
        stem=Placed(prefix=frame.prefix, layer=stem),
        blocks=numbered("transformer.h.", layers),
        tail=(last_norm(frame), last_head(frame)),
    )


def _block(keys: Keys, hidden: int) -> Layer:
    bias = not keys.flag("no_bias", default=True)
    attention = _attention(keys, bias=bias)
    double = keys.size("intermediate_size")
    if double % 2:
        keys.tell("intermediate_size", f"{double} is odd; two halves share it, write an even one")
    mlp = Mlp(ffn_size=max(1, double // 2), gated=True, activation="silu", bias=bias)
    width = attention.num_heads * attention.head_size
    up, down = (hidden, mlp.ffn_size), (mlp.ffn_size, hidden)
    parameters = parts.join(
        (
            parts.norm("ln_1", hidden, RMS),
            parts.linear(
                "attn.c_attn", hidden, 3 * width, "attention.qkv", bias=True, cut="column"
            ),
            parts.linear("attn.c_proj", width, hidden, "attention.o", bias=bias, cut="row"),
            parts.norm("ln_2", hidden, RMS),
            parts.linear("mlp.w1", *up, "mlp", bias=bias, cut="column"),
            parts.linear("mlp.w2", *up, "mlp", bias=bias, cut="column"),
            parts.linear("mlp.c_proj", *down, "mlp", bias=bias, cut="row"),
        )
    )
    return block(parameters, attention=attention, mlp=mlp)


def _attention(keys: Keys, *, bias: bool) -> Attention:
    heads, size = keys.size("num_attention_heads"), keys.size("kv_channels", default=128)
    share = keys.number("rotary_pct", default=1.0, low=0.0, high=1.0)
    return Attention(
        num_heads=heads,
        num_kv_heads=heads,
        head_size=size,
        value_head_size=size,
        fused_qkv=True,
        bias=True,
        output_bias=bias,
        rotary_size=int(size * share),
        dropout=keys.dropout("attn_dropout_prob"),
    )
