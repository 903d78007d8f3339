"""Attention in plain torch: heads, rotary positions, latent projections, the two cores.

Every function has a twin of the same name in ``planner.activations.programs.reference_attention``
that allocates the same, name by name; what a local variable holds here it holds there.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from planner.model.description import Attention, LatentAttention
from planner.model.modules import attention_norms
from planner.validate.reference.setting import Setting

ROTARY_BASE = 10000.0
Heads = tuple[Tensor, Tensor, Tensor]


class SelfAttention:
    """What a block does between its norm and its residual; the parameters are the block's."""

    def __init__(self, block: nn.Module, facts: Attention, setting: Setting) -> None:
        self.block = block
        self.facts = facts
        self.setting = setting
        self.scale = facts.head_size**-0.5

    def part(self, component: str) -> nn.Module:
        """The block's module with this component's matrix."""
        return self.block.part(component)

    def norm(self, place: int) -> nn.Module:
        """One of the norms inside attention."""
        return self.block.get_submodule(attention_norms(self.block.placed.layer)[place])

    def __call__(self, hidden: Tensor) -> Tensor:
        """(B, S, H) to (B, S, H)."""
        batch, length, _ = hidden.shape
        query, key, value = self.heads(hidden)
        if self.setting.training.recompute == "selective":
            context = checkpoint(
                self.core, query, key, value, use_reentrant=False, preserve_rng_state=False
            )
        else:
            context = self.core(query, key, value)
        return self.part("attention.o")(context.reshape(batch, length, -1))

    def heads(self, hidden: Tensor) -> Heads:
        """q, k and v as (B, A, S, D), positions in them."""
        if self.facts.latent is not None:
            return self.latent_heads(hidden, self.facts.latent)
        query, key, value = self.fused(hidden) if self.facts.fused_qkv else self.apart(hidden)
        if self.facts.rotary_size:
            cos, sin = rotary_tables(hidden, self.facts.rotary_size)
            query = rotate(query, cos, sin)
            key = rotate(key, cos, sin)
        return query, key, value

    def apart(self, hidden: Tensor) -> Heads:
        """A projection each."""
        query = self.normed(self.part("attention.q")(hidden), 0)
        key = self.normed(self.part("attention.k")(hidden), 1)
        value = turned(self.part("attention.v")(hidden), self.facts.value_head_size)
        return query, key, value

    def normed(self, projected: Tensor, place: int) -> Tensor:
        """Queries or keys as heads, after their norm if there is one."""
        size = self.facts.head_size
        if self.facts.qk_norm is None:
            return turned(projected, size)
        if self.facts.qk_norm_over == "projection":
            return turned(self.norm(place)(projected), size)
        return self.norm(place)(turned(projected, size))

    def fused(self, hidden: Tensor) -> Heads:
        """One projection, cut in three: all queries, all keys, all values."""
        mixed = self.part("attention.qkv")(hidden)
        query, key, value = mixed.split(qkv_sizes(self.facts, mixed.shape[-1]), -1)
        return (
            self.normed(query, 0),
            self.normed(key, 1),
            turned(value, self.facts.value_head_size),
        )

    def latent_heads(self, hidden: Tensor, latent: LatentAttention) -> Heads:
        """MLA: keys and values from a narrow projection, one rotated key for all heads."""
        facts = self.facts
        query = turned(self.latent_queries(hidden), facts.head_size)
        q_pass, q_turn = query.split((latent.nope_head_size, latent.rope_head_size), -1)
        narrow = self.part("attention.kv_down")(hidden)
        narrow, k_turn = narrow.split((latent.kv_rank, latent.rope_head_size), -1)
        wide = self.part("attention.kv_up")(self.norm(-1)(narrow))
        wide = turned(wide, latent.nope_head_size + facts.value_head_size)
        k_pass, value = wide.split((latent.nope_head_size, facts.value_head_size), -1)
        cos, sin = rotary_tables(hidden, latent.rope_head_size)
        k_turn = rotate(k_turn.unsqueeze(1), cos, sin)
        query = torch.cat([q_pass, rotate(q_turn, cos, sin)], -1)
        key = torch.cat([k_pass, k_turn.expand(*k_pass.shape[:-1], -1)], -1)
        return query, key, value

    def latent_queries(self, hidden: Tensor) -> Tensor:
        """In one step, or in two with a norm between them."""
        if self.facts.latent is None or self.facts.latent.q_rank is None:
            return self.part("attention.q")(hidden)
        narrow = self.norm(0)(self.part("attention.q_down")(hidden))
        return self.part("attention.q_up")(narrow)

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """From q, k and v (B, A, S, D) to (B, S, A, D)."""
        if self.setting.training.attention == "eager":
            return self.eager(query, key, value)
        return self.sdpa(query, key, value)

    def eager(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Scores, softmax in fp32, context."""
        times = query.shape[1] // key.shape[1]
        key = repeated(key, times)
        value = repeated(value, times)
        weights = torch.matmul(query, key.transpose(2, 3)) * self.scale
        if self.facts.causal:
            weights = weights + added_mask(query, self.facts.window)
        weights = functional.softmax(weights, -1, dtype=torch.float32).to(query.dtype)
        return torch.matmul(weights, value).transpose(1, 2).contiguous()

    def sdpa(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The kernel of torch, which repeats the heads of keys by itself."""
        window = self.facts.window
        mask = None
        if window is not None and window < query.shape[2]:
            mask = added_mask(query, window)
            times = query.shape[1] // key.shape[1]
            key = repeated(key, times)
            value = repeated(value, times)
        context = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and self.facts.causal,
            scale=self.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return context.transpose(1, 2).contiguous()


def qkv_sizes(facts: Attention, width: int) -> tuple[int, int, int]:
    """Columns of q, k and v in this rank's fused projection."""
    heads, groups = facts.num_heads, facts.num_kv_heads
    unit = facts.head_size
    groups = max(1, groups * (width // unit) // (heads + 2 * groups))
    return width - 2 * groups * unit, groups * unit, groups * unit


def turned(x: Tensor, size: int) -> Tensor:
    """(B, S, A * D) as (B, A, S, D)."""
    batch, length, _ = x.shape
    return x.view(batch, length, -1, size).transpose(1, 2)


def repeated(x: Tensor, times: int) -> Tensor:
    """Keys or values, a copy for every query head."""
    if times == 1:
        return x
    batch, heads, length, size = x.shape
    x = x.unsqueeze(2).expand(batch, heads, times, length, size)
    return x.reshape(batch, heads * times, length, size)


def added_mask(query: Tensor, window: int | None) -> Tensor:
    """(S, S): 0 where a token is seen, else minus infinity; of the query's dtype."""
    length = query.shape[2]
    hidden = torch.full((length, length), float("-inf"), dtype=query.dtype, device=query.device)
    mask = hidden.triu(1)
    return mask if window is None or window >= length else mask + hidden.tril(-window)


def rotary_tables(hidden: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (S, D): computed in fp32, kept in the dtype of the hidden states."""
    like = {"dtype": torch.float32, "device": hidden.device}
    rates = torch.arange(0, size, 2, **like)
    rates = ROTARY_BASE ** (rates / -size)
    angles = torch.outer(torch.arange(hidden.shape[1], **like), rates)
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, A, S, D), its first elements rotated; the rest of a head passes."""
    size = cos.shape[-1]
    if size == x.shape[-1]:
        return x * cos + half_turned(x) * sin
    first, rest = x[..., :size], x[..., size:]
    return torch.cat([first * cos + half_turned(first) * sin, rest], -1)


def half_turned(x: Tensor) -> Tensor:
    """The halves of a head swapped, the second one negative."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)
