"""Reading the attention of a configuration: heads, their size, rotary part, windows.

The keys and their meaning are those of transformers 5.23's ``configuration_*.py``.
"""

from collections.abc import Mapping
from dataclasses import replace

from planner.model.description import Attention
from planner.model.keys import Keys

KINDS = ("full_attention", "sliding_attention")


def grouped_attention(
    keys: Keys,
    hidden: int,
    *,
    kv_heads: int | None = None,
    head_size: int | None = None,
    bias: bool = False,
    output_bias: bool = False,
    rotary: float = 1.0,
    dropout: str = "attention_dropout",
) -> Attention:
    """Multi-head, grouped-query or multi-query attention.

    ``kv_heads`` and ``head_size`` are class defaults (None: as many as heads; hidden / heads),
    ``rotary`` the rotated share of a head, ``dropout`` the key of the attention's dropout.
    """
    heads = keys.size("num_attention_heads")
    groups = keys.size("num_key_value_heads", default=min(kv_heads or heads, heads))
    size = keys.optional_size("head_dim", default=head_size)
    if size is None:
        keys.divides(heads, hidden, names=("num_attention_heads", "hidden_size"))
        size = max(1, hidden // heads)
    keys.divides(groups, heads, names=("num_key_value_heads", "num_attention_heads"))
    return Attention(
        num_heads=heads,
        num_kv_heads=groups,
        head_size=size,
        value_head_size=size,
        bias=bias,
        output_bias=output_bias,
        rotary_size=rotary_size(keys, size, share=rotary),
        dropout=keys.dropout(dropout),
    )


def rotary_size(keys: Keys, head_size: int, *, share: float) -> int:
    """Rotated elements of a head: ``int(head_size * partial_rotary_factor)``.

    The factor stands at the top or, in newer files, within ``rope_parameters``; ``share`` is the
    class's default. Source: modeling_rope_utils.py, ``compute_default_rope_parameters``.
    """
    nested = keys.data.get("rope_parameters")
    inner = nested.get("partial_rotary_factor") if isinstance(nested, Mapping) else None
    source = keys.group("rope_parameters") if inner is not None else keys
    factor = (source or keys).number("partial_rotary_factor", default=share, low=0.0, high=1.0)
    return int(head_size * factor)


def windowed(attention: Attention, window: int | None) -> Attention:
    """Return the attention with a sliding window; None: it sees all that came before."""
    return attention if window is None else replace(attention, window=window)


def layer_kinds(keys: Keys, layers: int, default: tuple[str, ...]) -> tuple[str, ...]:
    """Return ``layer_types``, one kind a block; ``default`` where the file has none."""
    return keys.words("layer_types", choices=KINDS, length=layers) or default


def late_windows(keys: Keys, layers: int) -> tuple[int | None, ...]:
    """Return the window of every block of Qwen2 and Qwen3: from ``max_window_layers`` on."""
    window = keys.optional_size("sliding_window", default=4096)
    if not keys.flag("use_sliding_window", default=False):
        window = None
    first = keys.count("max_window_layers", default=28)
    kinds = tuple(KINDS[window is not None and index >= first] for index in range(layers))
    return tuple(window if kind == KINDS[1] else None for kind in layer_kinds(keys, layers, kinds))
