"""The gate of DeepSpeed's MoE layer: which tokens go to which experts, in fp32.

Source: moe/sharded_moe.py of DeepSpeed 0.19.8 (top1gating :214, top2gating :317, topkgating :413,
``TopKGate.forward`` :532), sparse routes as ``MOELayer`` asks for them. S tokens of the rank, E
experts, K of them a token, C tokens an expert has room for. Scalars are left out but for those
that the layer keeps.
"""

from math import ceil
from struct import pack, unpack
from typing import NamedTuple

from planner.activations.eager import (
    Machine,
    Tensor,
    clone,
    empty,
    gather,
    linear,
    mul,
    softmax,
    sum_over,
    to,
    topk,
    transpose,
    unsqueeze,
)
from planner.activations.eager.pieces import clamp
from planner.activations.programs import deepspeed_gate_kernels as kernels
from planner.activations.programs.case import Case
from planner.model.description import Moe
from planner.spec.deepspeed import MoeLayer


class Routes(NamedTuple):
    """Where each token goes; what the layer's attributes keep comes last."""

    experts: Tensor
    """(K, S) int32; -1 where the expert has no room left."""
    locations: Tensor
    """(K, S) int32: the place among the expert's tokens."""
    gates: Tensor
    """(K, S) fp32."""
    kept: tuple[Tensor, ...]
    """The balance loss, what its graph saves, and how many tokens each expert was chosen by."""


def capacity(case: Case) -> int:
    """C, tokens that every expert computes for each rank of the expert group.

    ``max(ceil(S/E * factor * K), min_capacity)`` in fp32 (:162). Without dropping it is the number
    of tokens that the fullest expert gets from the rank that sends it most (:485), which depends on
    the data: ``expert_imbalance`` times the mean, and no more than all tokens.
    """
    moe, rules = case.mlp, case.deepspeed.moe
    assert isinstance(moe, Moe)
    tokens, chosen = case.batch * case.length, moe.experts_per_token
    if not rules.drop_tokens:
        mean = tokens * chosen / moe.num_experts
        return min(tokens, -int(-mean * case.training.expert_imbalance // 1))
    mean, factor = _single(tokens / moe.num_experts), _single(rules.capacity_factor * chosen)
    return max(ceil(_single(mean * factor)), rules.min_capacity)


def _single(value: float) -> float:
    """As fp32 has it; a product of two such is exact before it is rounded."""
    rounded: float = unpack("f", pack("f", value))[0]
    return rounded


def route(m: Machine, case: Case, x: Tensor, weight: Tensor) -> Routes:
    """``TopKGate.forward`` on (S, H)."""
    moe, rules = case.mlp, case.deepspeed.moe
    assert isinstance(moe, Moe)
    wide = to(x, "fp32")
    if rules.noisy_gate_policy == "Jitter":
        wide = mul(wide, kernels.uniform(m, wide.shape))
    logits = linear(wide, to(weight, "fp32"))
    way = {1: _top1, 2: _top2}.get(moe.experts_per_token, _top_k)
    return way(m, rules, logits, moe.experts_per_token, capacity(case))


def _top1(m: Machine, rules: MoeLayer, logits: Tensor, k: int, room: int) -> Routes:
    del k
    tokens, experts = logits.shape
    noisy = kernels.noisy(m, logits) if rules.noisy_gate_policy == "RSample" else None
    gates = softmax(logits, "fp32")
    limit = empty(m, (), "int64")
    indices = empty(m, (tokens,), "int64")
    mask = empty(m, (tokens, experts), "int64")
    counts = empty(m, (experts,), "int64")
    loss, shares, mean = kernels.balance(gates)
    order = kernels.uniform_times(m, mask) if rules.use_rts else mask
    selected = kernels.fullest(m, order, min(room, tokens))
    spots = empty(m, mask.shape, "int64")
    mask = kernels.product(mask, spots)
    del spots
    indices, evicted = kernels.evict(indices)
    locations = kernels.counted(m, mask)
    product = mul(gates, mask)
    own = sum_over(product, 1)
    del product
    place = kernels.summed_product(m, mask)
    routes = empty(m, (1, tokens), "int32"), empty(m, (1, tokens), "int32")
    del limit, evicted, mean, noisy, order, selected, indices, locations, place
    return Routes(*routes, unsqueeze(own, 0), (loss, shares, counts))


def _top2(m: Machine, rules: MoeLayer, logits: Tensor, k: int, room: int) -> Routes:
    del room
    tokens, experts = logits.shape
    gates = softmax(logits, "fp32")
    first = empty(m, (tokens,), "int64")
    first_mask = empty(m, (tokens, experts), "int64")
    if rules.top2_2nd_expert_sampling:
        kernels.gumbel(m, logits.shape)
    others = kernels.without(logits)
    second = empty(m, (tokens,), "int64")
    second_mask = empty(m, (tokens, experts), "int64")
    locations = kernels.counted(m, first_mask), kernels.counted(m, second_mask)
    loss, shares, mean = kernels.balance(gates)
    both = empty(m, (tokens, experts), "int64")
    counts = empty(m, (experts,), "int64")
    del both
    limit = empty(m, (), "int64")
    places = [kernels.summed_product(m, mask) for mask in (first_mask, second_mask)]
    pair, beside = kernels.pair(gates)
    first, second = kernels.evict_empty(m, first), kernels.evict_empty(m, second)
    routes = [kernels.stacked(m, k, tokens) for _ in range(2)]
    own = kernels.stack_pair(pair)
    del limit, mean, others, locations, places, first, second, first_mask, second_mask, pair, beside
    return Routes(routes[0], routes[1], own, (loss, shares, counts))


def _top_k(m: Machine, rules: MoeLayer, logits: Tensor, k: int, room: int) -> Routes:
    tokens, experts = logits.shape
    gates = softmax(logits, "fp32")
    best, places = topk(gates, k)
    mask = empty(m, (tokens, experts), "bool")
    counts = empty(m, (experts,), "int64")
    loss, shares, mean = kernels.balance(gates)
    limit = empty(m, (), "int64")
    inside = kernels.most_likely(m, best, min(room, tokens), gates) if rules.drop_tokens else None
    locations = kernels.counted(m, mask)
    masked = mul(gates, mask)
    total = sum_over(masked, -1, keepdim=True)
    weights = kernels.divide(masked, clamp(total, bounds=1))
    kept = empty(m, (tokens, k), "bool")
    indices = kernels.where_kept(m, (tokens, k))
    own_locations = kernels.picked(m, (tokens, k))
    own = gather(weights, places)
    routes = [kernels.stacked(m, k, tokens) for _ in range(2)]
    chosen = clone(transpose(own, 0, 1))
    del limit, mean, inside, locations, kept, indices, own_locations, best, places
    return Routes(routes[0], routes[1], chosen, (loss, shares, counts))
