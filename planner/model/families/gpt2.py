"""GPT-2, and GPT-3 in its form: learned positions, ``Conv1D`` weights [in, out], a fused qkv.

Source: transformers 5.23 models/gpt2/configuration_gpt2.py, modeling_gpt2.py. GPT-3's banded
sparse attention (arXiv:2005.14165, section 2.1) has the same parameters.
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
    """Read a ``GPT2Config``."""
    keys.only("add_cross_attention", allowed=False, why="a decoder without cross-attention is")
    frame = Frame(
        implementation=trained_class(keys, "GPT2LMHeadModel"),
        hidden=keys.size("n_embd", "hidden_size"),
        vocab=keys.size("vocab_size"),
        positions=keys.size("n_positions", "max_position_embeddings", default=1024),
        tied=keys.flag("tie_word_embeddings", default=True),
        norm=LAYER_NORM,
        prefix="transformer.",
        last_norm="ln_f",
        embedding_dropout=keys.dropout("embd_pdrop", default=0.1),
    )
    layers = [_block(keys, frame.hidden)] * num_layers(keys, "n_layer", "num_hidden_layers")
    keys.finish()
    stem = Layer(
        kind="stem",
        parameters=parts.embedding("wte", frame.vocab, frame.hidden)
        + parts.embedding("wpe", frame.positions, frame.hidden, cut=False),
        hidden_dropout=frame.embedding_dropout,
        positions="learned",
    )
    return assemble(
        keys,
        frame,
        stem=Placed(prefix=frame.prefix, layer=stem),
        blocks=numbered("transformer.h.", layers),
        tail=(last_norm(frame), last_head(frame)),
    )


def _block(keys: Keys, hidden: int) -> Layer:
    attention = _attention(keys, hidden)
    mlp = Mlp(
        ffn_size=keys.size("n_inner", default=4 * hidden),
        gated=False,
        activation=keys.word("activation_function", default="gelu_new"),
        bias=True,
    )
    parameters = parts.join(
        (
            parts.norm("ln_1", hidden, LAYER_NORM),
            parts.conv1d("attn.c_attn", hidden, 3 * hidden, "attention.qkv", cut="column"),
            parts.conv1d("attn.c_proj", hidden, hidden, "attention.o", cut="row"),
            parts.norm("ln_2", hidden, LAYER_NORM),
            parts.conv1d("mlp.c_fc", hidden, mlp.ffn_size, "mlp", cut="column"),
            parts.conv1d("mlp.c_proj", mlp.ffn_size, hidden, "mlp", cut="row"),
        )
    )
    dropout = keys.dropout("resid_pdrop", default=0.1)
    return block(parameters, attention=attention, mlp=mlp, norm=LAYER_NORM, hidden_dropout=dropout)


def _attention(keys: Keys, hidden: int) -> Attention:
    heads = keys.size("n_head", "num_attention_heads")
    keys.divides(heads, hidden, names=("n_head", "n_embd"))
    size = max(1, hidden // heads)
    return Attention(
        num_heads=heads,
        num_kv_heads=heads,
        head_size=size,
        value_head_size=size,
        fused_qkv=True,
        bias=True,
        output_bias=True,
        dropout=keys.dropout("attn_pdrop", default=0.1),
    )
