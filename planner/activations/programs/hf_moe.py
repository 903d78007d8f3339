"""Routed experts as transformers runs them: grouped products over tokens sorted by expert.

Sources, transformers 5.23: integrations/moe.py (grouped_mm_experts_forward, which
get_correct_experts_implementation in modeling_utils.py:1883 makes the default), and each family's
router and block. Tokens are neither dropped nor padded, so sizes depend on their number alone.
"""

from planner.activations.eager import (
    Machine,
    Tensor,
    add,
    divide_in_place,
    empty,
    expand,
    gather,
    grouped_mm,
    like,
    linear,
    masked_fill,
    mul,
    reshape,
    rows,
    scale,
    shift,
    softmax,
    split,
    sum_over,
    to,
    topk,
    transpose,
    unary_of_result,
    unsqueeze,
    view,
)
from planner.activations.programs import autoep, deepspeed_moe
from planner.activations.programs.case import Case
from planner.activations.programs.modules import activate, project
from planner.layout.experts import expert_holder
from planner.model.description import Mlp, Moe

Choice = tuple[Tensor, Tensor, Tensor]
"""Router logits, weights (tokens, K) and places of the chosen experts."""


def mixture(m: Machine, case: Case, facts: Moe, hidden: Tensor) -> Tensor:
    """The block's MLP part; DeepSpeed's own layer runs experts that are spread out."""
    holder = expert_holder(case.layout, case.deepspeed)
    if holder == "autoep":
        return _spread_out(m, case, facts, hidden)
    if holder == "moe":
        return _native(m, case, facts, hidden)
    if facts.shared_gate:
        return _with_gated_shared(m, case, facts, hidden)
    if facts.shared is not None:
        return _with_shared(m, case, facts, hidden)
    batch, length, size = hidden.shape
    hidden = view(hidden, -1, size)
    _, weights, places = _route(m, case, facts, hidden)
    hidden = _experts(m, facts, hidden, places, weights)
    return reshape(hidden, batch, length, size)


def _spread_out(m: Machine, case: Case, facts: Moe, hidden: Tensor) -> Tensor:
    """AutoEP's layer, with the model's shared experts added to it (auto_ep_layer.py:1040)."""
    output = autoep.mixture(m, case, hidden)
    if facts.shared is None:
        return output
    return add(output, _shared(m, case, facts.shared, hidden))


def _native(m: Machine, case: Case, facts: Moe, hidden: Tensor) -> Tensor:
    """``DeepSpeedExperts.forward`` of planner/validate/reference/experts.py."""
    output = deepspeed_moe.mixture(m, case, hidden)
    if facts.shared is None:
        return output
    shared = _shared(m, case, facts.shared, hidden)
    if facts.shared_gate:
        with m.part("shared_experts"):
            shared = mul(unary_of_result(project(m, hidden, "mlp.shared_expert_gate")), shared)
    return add(output, shared)


def _with_shared(m: Machine, case: Case, facts: Moe, hidden: Tensor) -> Tensor:
    """``DeepseekV3MoE.forward``."""
    assert facts.shared is not None
    residuals = hidden
    shape = hidden.shape
    _, weights, places = _route(m, case, facts, hidden)
    hidden = view(hidden, -1, shape[-1])
    hidden = view(_experts(m, facts, hidden, places, weights), *shape)
    return add(hidden, _shared(m, case, facts.shared, residuals))


def _with_gated_shared(m: Machine, case: Case, facts: Moe, hidden: Tensor) -> Tensor:
    """``Qwen2MoeSparseMoeBlock.forward``."""
    assert facts.shared is not None
    batch, length, size = hidden.shape
    flat = view(hidden, -1, size)
    shared = _shared(m, case, facts.shared, flat)
    _, weights, places = _route(m, case, facts, flat)
    output = _experts(m, facts, flat, places, weights)
    with m.part("shared_experts"):
        shared = mul(unary_of_result(project(m, flat, "mlp.shared_expert_gate")), shared)
    output = add(output, shared)
    return reshape(output, batch, length, size)


def _shared(m: Machine, case: Case, facts: Mlp, hidden: Tensor) -> Tensor:
    with m.part("shared_experts"):
        return m.module("mlp.shared_experts", lambda x: _shared_mlp(m, case, facts, x), hidden)


def _shared_mlp(m: Machine, case: Case, facts: Mlp, hidden: Tensor) -> Tensor:
    with m.part("shared_experts"):
        own = [p.name.rpartition(".")[0] for p in case.layer.parameters]
        gate, up, down = (
            name for name in own if "shared_expert" in name and name.endswith("_proj")
        )
        product = mul(activate(facts.activation, project(m, hidden, gate)), project(m, hidden, up))
        return project(m, product, down)


def _route(m: Machine, case: Case, facts: Moe, hidden: Tensor) -> Choice:
    with m.part("router"):
        route = _route_grouped if facts.score == "sigmoid" else _route_softmax
        name = "mlp.router" if m.get("mlp.router", "weight") else "mlp.gate"
        result: list[Choice] = []

        def forward(x: Tensor) -> Tensor:
            result.append(route(m, case, facts, x, name))
            return result[0][1]

        weights = m.module(name, forward, hidden)
        logits, _, places = result.pop()
        return logits, weights, places


def _route_softmax(m: Machine, case: Case, facts: Moe, hidden: Tensor, name: str) -> Choice:
    """``Qwen2MoeTopKRouter.forward`` and, without the last cast, ``MixtralTopKRouter.forward``."""
    weight = m.get(name, "weight")
    assert weight is not None
    hidden = reshape(hidden, -1, hidden.shape[-1])
    if facts.router_fp32:
        logits = linear(to(hidden, "fp32"), to(weight, "fp32"))
    else:
        logits = linear(hidden, weight)
    scores = softmax(logits, "fp32")
    masks: list[Tensor] = []
    if facts.num_groups > 1:
        scores = _limited(facts, scores, masks)
    weights, places = topk(scores, facts.experts_per_token)
    if facts.normalize:
        weights = divide_in_place(weights, sum_over(weights, -1, keepdim=True))
    if case.family == "deepseek_v2":
        weights = scale(weights)
    elif case.family != "mixtral":
        weights = to(weights, logits.dtype)
    del masks
    return logits, weights, places


def _route_grouped(m: Machine, case: Case, facts: Moe, hidden: Tensor, name: str) -> Choice:
    """``DeepseekV3TopkRouter.forward``: only some groups of experts are candidates."""
    del case
    weight = m.get(name, "weight")
    assert weight is not None
    hidden = view(hidden, -1, hidden.shape[-1])
    logits = linear(to(hidden, "fp32"), to(weight, "fp32"))
    scores = unary_of_result(logits)
    for_choice = shift(scores)
    tokens, groups = logits.shape[0], facts.num_groups
    candidates = view(for_choice, -1, groups, facts.num_experts // groups)
    group_scores = sum_over(topk(candidates, 2)[0], -1)
    del candidates
    group_places = topk(group_scores, facts.groups_per_token)[1]
    group_mask = like(group_scores)
    wide = expand(unsqueeze(group_mask, 2), tokens, groups, facts.num_experts // groups)
    score_mask = reshape(wide, -1, facts.num_experts)
    for_choice = _masked(for_choice, score_mask)
    places = topk(for_choice, facts.experts_per_token)[1]
    weights = gather(scores, places)
    if facts.normalize:
        denominator = shift(sum_over(weights, -1, keepdim=True))
        weights = divide_in_place(weights, denominator)
    weights = scale(weights)
    del group_places
    return logits, weights, places


def _limited(facts: Moe, scores: Tensor, masks: list[Tensor]) -> Tensor:
    """``group_limited_greedy`` of DeepSeek-V2: groups with the best experts are candidates.

    ``masks``: what the router's names hold until it returns.
    """
    tokens, groups, each = scores.shape[0], facts.num_groups, facts.num_experts // facts.num_groups
    best = topk(view(scores, -1, groups, each), 1)[0]
    group_places = topk(view(best, -1, groups), facts.groups_per_token)[1]
    group_mask = like(best)
    wide = expand(view(group_mask, tokens, groups, 1), tokens, groups, each)
    mask = reshape(wide, -1, facts.num_experts)
    masks += [best, group_places, group_mask, mask]
    return _masked(scores, mask)


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """``scores.masked_fill(~mask.bool(), -inf)``."""
    chosen = empty(mask.machine, mask.shape, "bool")
    others = like(chosen)
    del chosen
    return masked_fill(scores, others)


def _experts(m: Machine, facts: Moe, hidden: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    with m.part("routed_experts"):
        return m.module(
            "mlp.experts", lambda x, w: grouped_experts(m, facts, x, places, w), hidden, weights
        )


def grouped_experts(
    m: Machine, facts: Moe, hidden: Tensor, places: Tensor, weights: Tensor
) -> Tensor:
    """``grouped_mm_experts_forward``: sort, up, gate, down, weigh, sort back, add up."""
    tokens, size = hidden.shape
    sample_weights = reshape(weights, -1)
    expert_ids = view(places, -1)
    count = (expert_ids.numel,)
    sorted_ids, order = empty(m, count, "int64"), empty(m, count, "int64")
    selected = rows(hidden, empty(m, count, "int64"))
    sorted_weights = rows(sample_weights, order)
    counted = empty(m, count, "fp32" if m.backend == "cpu" else "int32")
    per_expert = empty(m, (facts.num_experts,), counted.dtype)
    offsets = empty(m, (facts.num_experts,), "int32")
    output = grouped_mm(selected, _turned(m, "gate_up_proj"), offsets)
    output = _gated(facts.expert, output)
    output = grouped_mm(output, _turned(m, "down_proj"), offsets)
    weighted = mul(output, unsqueeze(sorted_weights, 1))
    back = empty(m, count, "int64")
    arranged = empty(m, count, "int64")
    del arranged
    weighted = rows(weighted, back)
    total = sum_over(view(weighted, tokens, facts.experts_per_token, size), 1)
    result = to(total, hidden.dtype)
    del sorted_ids, per_expert
    return result


def _turned(m: Machine, name: str) -> Tensor:
    weight = m.get("mlp.experts", name)
    assert weight is not None
    return transpose(weight, 1, 2)


def _gated(facts: Mlp, tensor: Tensor) -> Tensor:
    """``_apply_gate``: the halves of one product."""
    half = tensor.shape[-1] // 2
    gate, up = split(tensor, (half, half), -1)
    return mul(activate(facts.activation, gate), up)
