"""Experts under DeepSpeed's AutoEP: dropless, tokens exchanged by all-to-all of variable sizes.

Source: module_inject/auto_ep_layer.py of DeepSpeed 0.19.8 (``AutoEPMoELayer._forward`` from line
925), moe/ep_router.py, moe/ep_kernels.py, moe/ep_experts.py; default settings (scores applied
after the experts, weighted sum, communication by ``all_to_all_single``). T tokens on this rank go
to K experts each: N = T * K rows leave, R rows arrive, P after each expert's rows are aligned.
"""

from planner.activations.eager import (
    Machine,
    Tensor,
    add,
    empty,
    linear,
    reshape,
    scale,
    softmax,
    to,
    unary_of_result,
    view,
)
from planner.activations.programs import autoep_kernels as kernels
from planner.activations.programs.case import Case
from planner.activations.programs.experts import Routed, run_experts
from planner.model.description import Moe
from planner.units import round_up

ALIGNMENT = 8
"""``TOKEN_GROUP_ALIGN_SIZE_M``, moe/ep_kernels.py:43."""


def received_rows(case: Case) -> int:
    """R of the rank that most tokens are sent to: ``expert_imbalance`` times the mean, T * K."""
    assert isinstance(case.mlp, Moe)
    rows = case.batch * case.length * case.mlp.experts_per_token
    return -int(-rows * case.training.expert_imbalance // 1)


def mixture(
    m: Machine,
    case: Case,
    hidden: Tensor,
    *,
    received: int | None = None,
    counts: tuple[int, ...] | None = None,
) -> Tensor:
    """``AutoEPMoELayer._forward`` without what a model adds to it (shared experts).

    ``received``: rows that arrive, if known. ``counts``: how many of them each expert of the rank
    gets after alignment; it matters on the CPU only.
    """
    moe = case.mlp
    assert isinstance(moe, Moe)
    batch, length, size = hidden.shape
    x = reshape(hidden, -1, size)
    scores, chosen = _route(m, case, moe, x)
    with m.part("experts"):
        counts_held = _counters(m, case, moe)
        order, sorted_scores, sorted_experts = _sort(m, scores, chosen)
        rows = kernels.take_rows(x, order)
        del x
        arrived = received_rows(case) if received is None else received
        rows = kernels.exchange(rows, arrived)
        rows, places = _permute(m, case, moe, rows)
        result = run_experts(m, Routed.of(m, case), rows, counts)
        del rows
        result = kernels.unpermute(result, places, arrived)
        result = kernels.exchange(result, order.numel)
        output = kernels.combine(result, scores, order)
        # The caller's variables hold these until it returns.
        del result, sorted_scores, sorted_experts, places, counts_held
    return view(output, batch, length, size)


def _route(m: Machine, case: Case, moe: Moe, x: Tensor) -> tuple[Tensor, Tensor]:
    """``TokenChoiceTopKRouter.forward``, moe/ep_router.py:133-200: fp32 scores of K experts."""
    weights = [
        m.parameters[parameter.name]
        for parameter in case.layer.parameters
        if parameter.component == "router"
    ]
    with m.part("router"):
        logits = to(linear(x, *weights[:2]), "fp32")
        scores = softmax(logits, "fp32") if moe.score == "softmax" else unary_of_result(logits)
        del logits
        ranked = (
            add(scores, m.uncounted((moe.num_experts,), "fp32")) if moe.score_correction else scores
        )
        best, chosen = kernels.top_k(ranked, moe.experts_per_token)
        del ranked
        top = kernels.gather(scores, chosen)
        del scores
        if moe.normalize:
            top = kernels.normalise_last(top)
        top = scale(top)
        del best
    return top, chosen


def _counters(m: Machine, case: Case, moe: Moe) -> list[Tensor]:
    """Rows by expert: sent, received from each rank, and aligned, int32 (238-262, ep_count.py)."""
    local = moe.num_experts // case.layout.ep
    return [empty(m, (size,), "int32") for size in (moe.num_experts, moe.num_experts, local)]


def _sort(m: Machine, scores: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Assignments in the order of their experts (auto_ep_layer.py:973-975)."""
    rows = (chosen.numel,)
    order = empty(m, rows, "int64")
    return order, kernels.take(view(scores, -1), order), empty(m, rows, "int64")


def _permute(m: Machine, case: Case, moe: Moe, rows: Tensor) -> tuple[Tensor, Tensor]:
    """``permute_by_local_expert``: rows grouped by expert, each group padded."""
    local = moe.num_experts // case.layout.ep
    padded = round_up(rows.shape[0] + local * ALIGNMENT, ALIGNMENT)
    places = empty(m, (padded,), "int32")
    return kernels.permute(rows, places), places
