"""BERT as a masked language model: post-norm blocks without a causal mask, a head with a transform.

``BertForMaskedLM`` has no pooler: 109,514,298 parameters (base). The often printed 109,482,240 is
the bare encoder with its pooler.

Source: transformers 5.23 models/bert/configuration_bert.py, modeling_bert.py.
"""

from planner.model import parts
from planner.model.decoder import (
    LAYER_NORM,
    Frame,
    assemble,
    block,
    num_layers,
    numbered,
    trained_class,
)
from planner.model.description import Attention, Layer, Mlp, Model, Parameter, Placed
from planner.model.keys import Keys


def build(keys: Keys) -> Model:
    """Read a ``BertConfig``."""
    keys.only("is_decoder", allowed=False, why="an encoder is")
    keys.only("add_cross_attention", allowed=False, why="an encoder without cross-attention is")
    keys.only("tie_word_embeddings", allowed=True, why="a head tied to the embedding is")
    frame = Frame(
        implementation=trained_class(keys, "BertForMaskedLM"),
        hidden=keys.size("hidden_size"),
        vocab=keys.size("vocab_size"),
        positions=keys.size("max_position_embeddings", default=512),
        tied=True,
        norm=LAYER_NORM,
        prefix="bert.",
    )
    dropout = keys.dropout("hidden_dropout_prob", default=0.1)
    types = keys.size("type_vocab_size", default=2)
    layers = [_block(keys, frame.hidden, dropout)] * num_layers(keys)
    keys.finish()
    return assemble(
        keys,
        frame,
        stem=Placed(prefix="bert.embeddings.", layer=_stem(frame, types, dropout)),
        blocks=numbered("bert.encoder.layer.", layers),
        tail=(Placed(prefix="cls.predictions.", layer=_head(frame)),),
    )


def _stem(frame: Frame, types: int, dropout: float) -> Layer:
    hidden = frame.hidden
    return Layer(
        kind="stem",
        parameters=parts.embedding("word_embeddings", frame.vocab, hidden)
        + parts.embedding("position_embeddings", frame.positions, hidden, cut=False)
        + parts.embedding("token_type_embeddings", types, hidden, cut=False)
        + parts.norm("LayerNorm", hidden, LAYER_NORM),
        norm=LAYER_NORM,
        hidden_dropout=dropout,
        positions="learned",
        token_types=True,
        embedding_norm=True,
    )


def _block(keys: Keys, hidden: int, dropout: float) -> Layer:
    heads = keys.size("num_attention_heads")
    keys.divides(heads, hidden, names=("num_attention_heads", "hidden_size"))
    size = max(1, hidden // heads)
    attention = Attention(
        num_heads=heads,
        num_kv_heads=heads,
        head_size=size,
        value_head_size=size,
        bias=True,
        output_bias=True,
        causal=False,
        dropout=keys.dropout("attention_probs_dropout_prob", default=0.1),
    )
    mlp = Mlp(
        ffn_size=keys.size("intermediate_size"),
        gated=False,
        activation=keys.word("hidden_act", default="gelu"),
        bias=True,
    )
    return block(
        _block_parameters(hidden, mlp),
        attention=attention,
        mlp=mlp,
        norm=LAYER_NORM,
        residual="post",
        hidden_dropout=dropout,
    )


def _block_parameters(hidden: int, mlp: Mlp) -> parts.Parameters:
    inner, outer = "attention.self.", "attention.output."
    return parts.join(
        (
            parts.linear(f"{inner}query", hidden, hidden, "attention.q", bias=True, cut="column"),
            parts.linear(f"{inner}key", hidden, hidden, "attention.k", bias=True, cut="column"),
            parts.linear(f"{inner}value", hidden, hidden, "attention.v", bias=True, cut="column"),
            parts.linear(f"{outer}dense", hidden, hidden, "attention.o", bias=True, cut="row"),
            parts.norm(f"{outer}LayerNorm", hidden, LAYER_NORM),
            parts.plain_mlp("", hidden, mlp, names=("intermediate.dense", "output.dense")),
            parts.norm("output.LayerNorm", hidden, LAYER_NORM),
        )
    )


def _head(frame: Frame) -> Layer:
    hidden = frame.hidden
    bias = Parameter(name="bias", shape=(frame.vocab,), component="head", tp_dim=0)
    return Layer(
        kind="head",
        parameters=(
            bias,
            *parts.linear("transform.dense", hidden, hidden, "head", bias=True),
            *parts.norm("transform.LayerNorm", hidden, LAYER_NORM),
        ),
        norm=LAYER_NORM,
        head_transform=True,
    )
