"""The frame of most decoders: ``model.embed_tokens``, ``model.layers.N``, ``norm``, head."""

from collections.abc import Iterable
from dataclasses import dataclass

from planner.model import parts
from planner.model.description import Attention, Layer, Mlp, Model, Moe, Norm, Placed, Residual
from planner.model.keys import MAX_LAYERS, Keys

RMS = Norm(kind="rms")
LAYER_NORM = Norm(kind="layer", bias=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What every decoder of this frame has."""

    implementation: str
    hidden: int
    vocab: int
    positions: int
    tied: bool
    norm: Norm = RMS
    prefix: str = "model."
    last_norm: str = "norm"
    embedding_dropout: float = 0.0
    embedding_scale: bool = False
    head_bias: bool = False
    logit_softcap: bool = False


def read_frame(
    keys: Keys,
    implementation: str,
    *,
    positions: int,
    tied: bool = False,
    aliases: Iterable[str] = (),
    norm: Norm = RMS,
) -> Frame:
    """Read what all decoders have in common; ``positions`` and ``tied`` are class defaults."""
    return Frame(
        implementation=trained_class(keys, implementation, aliases=aliases),
        hidden=keys.size("hidden_size"),
        vocab=keys.size("vocab_size"),
        positions=keys.size("max_position_embeddings", "max_sequence_length", default=positions),
        tied=keys.flag("tie_word_embeddings", default=tied),
        norm=norm,
    )


def num_layers(keys: Keys, *names: str) -> int:
    """Return the number of blocks, bounded so that a hostile file costs nothing."""
    return keys.size(*(names or ("num_hidden_layers",)), largest=MAX_LAYERS)


def trained_class(keys: Keys, implementation: str, *, aliases: Iterable[str] = ()) -> str:
    """Return the class that is described, after a look at what ``architectures`` asks for."""
    named = keys.data.get("architectures")
    first = named[0] if isinstance(named, list) and named else named
    if first not in (None, [], implementation, *aliases):
        keys.only("architectures", [implementation], why=f"{implementation} is")
    return implementation


def read_mlp(keys: Keys, *names: str, gated: bool = True, bias: bool = False) -> Mlp:
    """Read a feed-forward module: its width under ``names``, its activation in ``hidden_act``."""
    return Mlp(
        ffn_size=keys.size(*(names or ("intermediate_size",))),
        gated=gated,
        activation=keys.word("hidden_act", default="silu"),
        bias=bias,
    )


def block(
    parameters: parts.Parameters,
    *,
    attention: Attention,
    mlp: Mlp | Moe,
    norm: Norm = RMS,
    residual: Residual = "pre",
    hidden_dropout: float = 0.0,
) -> Layer:
    """One block with its facts."""
    return Layer(
        kind="block",
        parameters=parameters,
        norm=norm,
        attention=attention,
        mlp=mlp,
        residual=residual,
        hidden_dropout=hidden_dropout,
    )


def two_norms(hidden: int, norm: Norm = RMS) -> parts.Parameters:
    """``input_layernorm`` and ``post_attention_layernorm``, which blocks register last."""
    return join_norms(("input_layernorm", "post_attention_layernorm"), hidden, norm)


def join_norms(names: Iterable[str], hidden: int, norm: Norm = RMS) -> parts.Parameters:
    """Norms over the hidden size, one after another."""
    return parts.join(parts.norm(name, hidden, norm) for name in names)


def decoder(keys: Keys, frame: Frame, blocks: Iterable[Layer]) -> Model:
    """Put blocks into the frame; raises all faults that reading the keys has found."""
    keys.finish()
    stem = Layer(
        kind="stem",
        parameters=parts.embedding("embed_tokens", frame.vocab, frame.hidden),
        hidden_dropout=frame.embedding_dropout,
        embedding_scale=frame.embedding_scale,
    )
    return assemble(
        keys,
        frame,
        stem=Placed(prefix=frame.prefix, layer=stem),
        blocks=numbered(f"{frame.prefix}layers.", blocks),
        tail=(last_norm(frame), last_head(frame)),
    )


def assemble(
    keys: Keys, frame: Frame, *, stem: Placed, blocks: tuple[Placed, ...], tail: tuple[Placed, ...]
) -> Model:
    """Put a model together."""
    return Model(
        name=keys.name,
        family=str(keys.data.get("model_type")),
        implementation=frame.implementation,
        hidden_size=frame.hidden,
        vocab_size=frame.vocab,
        max_positions=frame.positions,
        tied=frame.tied,
        stem=stem,
        blocks=blocks,
        tail=tail,
    )


def numbered(prefix: str, layers: Iterable[Layer]) -> tuple[Placed, ...]:
    """Place blocks as a ``ModuleList`` numbers them."""
    return tuple(
        Placed(prefix=f"{prefix}{index}.", layer=layer) for index, layer in enumerate(layers)
    )


def last_norm(frame: Frame, *, registered_early: bool = False) -> Placed:
    """Place the norm after the blocks."""
    layer = Layer(
        kind="norm",
        parameters=parts.norm(frame.last_norm, frame.hidden, frame.norm),
        norm=frame.norm,
    )
    return Placed(prefix=frame.prefix, layer=layer, registered_early=registered_early)


def last_head(frame: Frame, name: str = "lm_head") -> Placed:
    """Place the head; a tied one has no parameters."""
    own = parts.head(name, frame.hidden, frame.vocab, bias=frame.head_bias)
    layer = Layer(
        kind="head", parameters=() if frame.tied else own, logit_softcap=frame.logit_softcap
    )
    return Placed(prefix="", layer=layer)


def gated_block(
    hidden: int,
    attention: Attention,
    mlp: Mlp,
    *,
    norms: parts.Parameters | None = None,
    norm: Norm = RMS,
    residual: Residual = "pre",
) -> Layer:
    """Separate projections, gated MLP, norms: the block of Llama and most that follow it."""
    parameters = parts.join(
        (
            parts.projections("self_attn.", hidden, attention),
            parts.qk_norms("self_attn.", attention),
            parts.gated_mlp("mlp.", hidden, mlp),
            two_norms(hidden, norm) if norms is None else norms,
        )
    )
    return block(parameters, attention=attention, mlp=mlp, norm=norm, residual=residual)
