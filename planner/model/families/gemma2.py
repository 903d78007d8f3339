"""Gemma 2: norms on both sides of each branch, sliding windows in every other block, soft caps.

Source: transformers 5.23 models/gemma2/configuration_gemma2.py, modeling_gemma2.py.
"""

from dataclasses import replace

from planner.model.decoder import decoder, gated_block, join_norms, num_layers
from planner.model.description import Attention, Layer, Mlp, Model
from planner.model.families.gemma import ONE_PLUS, gemma_frame, gemma_mlp
from planner.model.grouped import KINDS, grouped_attention, layer_kinds, windowed
from planner.model.keys import Keys

FOUR_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def build(keys: Keys) -> Model:
    """Read a ``Gemma2Config``."""
    frame = gemma_frame(keys, "Gemma2ForCausalLM", positions=8192)
    cap = caps(keys, "final_logit_softcapping", default=30.0)
    attention = wide_attention(keys, frame.hidden, cap=50.0)
    layers = num_layers(keys)
    kinds = layer_kinds(keys, layers, tuple(KINDS[index % 2 == 0] for index in range(layers)))
    blocks = sliding_blocks(keys, frame.hidden, attention, gemma_mlp(keys, "hidden_activation"))
    return decoder(keys, replace(frame, logit_softcap=cap), [blocks[kind] for kind in kinds])


def wide_attention(keys: Keys, hidden: int, *, cap: float | None) -> Attention:
    """Read the attention of Gemma 2 and 3; ``cap`` is the class's default soft cap."""
    bias = keys.flag("attention_bias", default=False)
    attention = grouped_attention(
        keys, hidden, kv_heads=4, head_size=256, bias=bias, output_bias=bias
    )
    return replace(
        attention,
        softcap=caps(keys, "attn_logit_softcapping", default=cap),
        causal=not keys.flag("use_bidirectional_attention", default=False),
    )


def sliding_blocks(keys: Keys, hidden: int, attention: Attention, mlp: Mlp) -> dict[str, Layer]:
    """One block of each kind of attention, with four norms."""
    window = keys.optional_size("sliding_window", default=4096)
    windows = {"full_attention": None, "sliding_attention": window}
    norms = join_norms(FOUR_NORMS, hidden, ONE_PLUS)
    return {
        kind: gated_block(
            hidden, windowed(attention, size), mlp, norms=norms, norm=ONE_PLUS, residual="sandwich"
        )
        for kind, size in windows.items()
    }


def caps(keys: Keys, name: str, *, default: float | None) -> bool:
    """Tell whether a soft cap is applied; null switches it off."""
    if name in keys.data and keys.data[name] is None:
        return False
    return keys.number(name, default=default or 0.0, low=0.0, high=1e9) > 0
