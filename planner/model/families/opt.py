"""OPT: learned positions, biases, the last norm registered before the blocks.

OPT-350m, whose embedding is narrower than its hidden size and whose norms follow the branches, is
described too. transformers registers its ``project_out`` right before ``project_in``, here it comes
right after: both have the same number of elements.

Source: transformers 5.23 models/opt/configuration_opt.py, modeling_opt.py:46-60, 185-315.
"""

from dataclasses import replace

from planner.model import parts
from planner.model.decoder import (
    Frame,
    assemble,
    block,
    last_head,
    last_norm,
    num_layers,
    numbered,
    trained_class,
)
from planner.model.description import Layer, Mlp, Model, Norm, Placed
from planner.model.grouped import grouped_attention
from planner.model.keys import Keys

POSITION_OFFSET = 2
"""OPT's table of positions has two rows more than it has positions (modeling_opt.py:53)."""


def build(keys: Keys) -> Model:
    """Read an ``OPTConfig``."""
    affine = keys.flag("layer_norm_elementwise_affine", default=True)
    frame = Frame(
        implementation=trained_class(keys, "OPTForCausalLM"),
        hidden=keys.size("hidden_size"),
        vocab=keys.size("vocab_size"),
        positions=keys.size("max_position_embeddings", default=2048),
        tied=keys.flag("tie_word_embeddings", default=True),
        norm=Norm(kind="layer", affine=affine, bias=affine),
        prefix="model.decoder.",
        last_norm="final_layer_norm",
    )
    before = keys.flag("do_layer_norm_before", default=True)
    width = keys.size("word_embed_proj_dim", default=frame.hidden)
    layers = [_block(keys, frame, before=before)] * num_layers(keys)
    dropped = keys.flag("_remove_final_layer_norm", default=False)
    if width != frame.hidden and not frame.tied:
        keys.only("tie_word_embeddings", allowed=True, why="a narrow embedding is tied")
    keys.finish()
    norms = (last_norm(frame, registered_early=True),) if before and not dropped else ()
    return assemble(
        keys,
        frame,
        stem=Placed(prefix=frame.prefix, layer=_stem(frame, width)),
        blocks=numbered("model.decoder.layers.", layers),
        tail=(*norms, _head(frame, width)),
    )


def _stem(frame: Frame, width: int) -> Layer:
    """Tokens, positions and, where the embedding is narrower, the projection into the model."""
    projection = (
        ()
        if width == frame.hidden
        else parts.linear("project_in", width, frame.hidden, "embedding")
    )
    return Layer(
        kind="stem",
        parameters=parts.embedding("embed_tokens", frame.vocab, width)
        + parts.embedding(
            "embed_positions", frame.positions + POSITION_OFFSET, frame.hidden, cut=False
        )
        + projection,
        positions="learned",
        embedding_size=None if width == frame.hidden else width,
    )


def _head(frame: Frame, width: int) -> Placed:
    """The head; where the embedding is narrower, with the projection out of the model."""
    if width == frame.hidden:
        return last_head(frame)
    projection = parts.linear("model.decoder.project_out", frame.hidden, width, "head")
    layer = Layer(kind="head", parameters=projection, embedding_size=width)
    return Placed(prefix="", layer=layer, registered_early=True)


def _block(keys: Keys, frame: Frame, *, before: bool) -> Layer:
    hidden, bias = frame.hidden, keys.flag("enable_bias", default=True)
    attention = replace(grouped_attention(keys, hidden, bias=bias, output_bias=bias), rotary_size=0)
    mlp = Mlp(
        ffn_size=keys.size("ffn_dim"),
        gated=False,
        activation=keys.word("activation_function", default="relu"),
        bias=bias,
    )
    parameters = parts.join(
        (
            parts.projections("self_attn.", hidden, attention, order="kvqo", output="out_proj"),
            parts.norm("self_attn_layer_norm", hidden, frame.norm),
            parts.plain_mlp("", hidden, mlp, names=("fc1", "fc2")),
            parts.norm("final_layer_norm", hidden, frame.norm),
        )
    )
    return block(
        parameters,
        attention=attention,
        mlp=mlp,
        norm=frame.norm,
        residual="pre" if before else "post",
        hidden_dropout=keys.dropout("dropout", default=0.1),
    )
