"""DeepSeek's latent attention: reading its ranks and listing its projections.

Source: transformers 5.23 models/deepseek_v3/modeling_deepseek_v3.py:370-405; DeepSeek-V2,
arXiv:2405.04434, section 2.1. Down-projections and their norms are whole on every rank, the
up-projections are cut by heads.
"""

from planner.model import parts
from planner.model.decoder import RMS, block, two_norms
from planner.model.description import Attention, LatentAttention, Layer, Mlp, Moe
from planner.model.keys import Keys


def latent_attention(keys: Keys) -> Attention:
    """Read the heads, the ranks and the three head sizes."""
    heads = keys.size("num_attention_heads")
    groups = keys.size("num_key_value_heads", default=heads)
    keys.divides(groups, heads, names=("num_key_value_heads", "num_attention_heads"))
    latent = LatentAttention(
        q_rank=keys.optional_size("q_lora_rank", default=1536),
        kv_rank=keys.size("kv_lora_rank", default=512),
        rope_head_size=keys.size("qk_rope_head_dim", default=64),
        nope_head_size=keys.size("qk_nope_head_dim", default=128),
    )
    bias = keys.flag("attention_bias", default=False)
    return Attention(
        num_heads=heads,
        num_kv_heads=heads,
        head_size=latent.rope_head_size + latent.nope_head_size,
        value_head_size=keys.size("v_head_dim", default=128),
        bias=bias,
        output_bias=bias,
        rotary_size=latent.rope_head_size,
        dropout=keys.dropout("attention_dropout"),
        latent=latent,
    )


def latent_block(hidden: int, attention: Attention, mlp: Mlp | Moe) -> Layer:
    """Latent attention, then the MLP or the experts, then the two norms."""
    feed_forward = (
        parts.gated_mlp("mlp.", hidden, mlp) if isinstance(mlp, Mlp) else parts.mixture(hidden, mlp)
    )
    projections = latent_projections("self_attn.", hidden, attention)
    return block(projections + feed_forward + two_norms(hidden), attention=attention, mlp=mlp)


def latent_projections(prefix: str, hidden: int, attention: Attention) -> parts.Parameters:
    """Queries in one step or two, keys and values in two, then the output."""
    latent = attention.latent
    if latent is None:
        raise TypeError("latent_projections: the attention has no latent part")
    heads = attention.num_heads
    keys_and_values = heads * (latent.nope_head_size + attention.value_head_size)
    return parts.join(
        (
            _queries(prefix, hidden, attention, latent.q_rank),
            parts.linear(
                f"{prefix}kv_a_proj_with_mqa",
                hidden,
                latent.kv_rank + latent.rope_head_size,
                "attention.kv_down",
                bias=attention.bias,
            ),
            parts.norm(f"{prefix}kv_a_layernorm", latent.kv_rank, RMS),
            parts.linear(
                f"{prefix}kv_b_proj",
                latent.kv_rank,
                keys_and_values,
                "attention.kv_up",
                cut="column",
            ),
            parts.linear(
                f"{prefix}o_proj",
                heads * attention.value_head_size,
                hidden,
                "attention.o",
                bias=attention.output_bias,
                cut="row",
            ),
        )
    )


def _queries(prefix: str, hidden: int, attention: Attention, rank: int | None) -> parts.Parameters:
    size = attention.num_heads * attention.head_size
    if rank is None:
        return parts.linear(f"{prefix}q_proj", hidden, size, "attention.q", cut="column")
    return parts.join(
        (
            parts.linear(
                f"{prefix}q_a_proj", hidden, rank, "attention.q_down", bias=attention.bias
            ),
            parts.norm(f"{prefix}q_a_layernorm", rank, RMS),
            parts.linear(f"{prefix}q_b_proj", rank, size, "attention.q_up", cut="column"),
        )
    )
