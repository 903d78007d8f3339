"""Which of its variants `DeepSpeedZeroOptimizer` is for a run of ZeRO stage 1 or 2.

Line numbers are of runtime/zero/stage_1_and_2.py of DeepSpeed 0.19.8.
"""

from dataclasses import replace
from functools import lru_cache

from planner.engines.deepspeed.dtypes import accumulates_in_fp32, sizes
from planner.engines.deepspeed.keepers import Compact, InPlace, Keeper, Together, When
from planner.engines.deepspeed.muon import muon_updates
from planner.engines.deepspeed.offload import (
    OffloadedStep,
    offloaded,
    offloads,
)
from planner.engines.deepspeed.partition import Partition, partition
from planner.engines.deepspeed.reduction import Rules, Way
from planner.engines.deepspeed.strategy import Setup
from planner.engines.deepspeed.zero12_optimizer import ZeroOneTwo
from planner.engines.deepspeed.zero12_step import Step, make_step
from planner.spec.deepspeed import Zero

STAGE_2 = 2


def zero12(setup: Setup) -> ZeroOneTwo:
    """Stage 1 or 2 of the layout, with or without offload."""
    zero = setup.deepspeed.zero_optimization
    layout = partition(setup)
    stage2 = setup.layout.zero_stage == STAGE_2
    accumulates, contiguous = _accumulates(setup), _contiguous(setup)
    keeper = _keeper(setup, layout)
    step = (
        OffloadedStep(keeper=offloaded(setup, layout, keeper))
        if offloads(setup)
        else replace(_first_step(setup))
    )
    return ZeroOneTwo(
        setup=setup,
        layout=layout,
        keeper=step.keeper if isinstance(step, OffloadedStep) else keeper,
        rules=_rules(setup, accumulates=accumulates, contiguous=contiguous),
        last_step=step,
        muon=muon_updates(setup, layout),
        partitions_gradients=stage2,
        accumulates=accumulates,
        contiguous=contiguous,
        num_buffers=2 if zero.overlap_comm and setup.layout.pp == 1 else 1,
        others_free="step"
        if accumulates
        else _others_free(zero, stage2=stage2, contiguous=contiguous),
    )


def _accumulates(setup: Setup) -> bool:
    size = sizes(setup)
    return size.accumulation != size.model and setup.layout.zero_stage != STAGE_2


def _contiguous(setup: Setup) -> bool:
    return setup.deepspeed.zero_optimization.contiguous_gradients or offloads(setup)


@lru_cache(maxsize=256)
def _first_step(setup: Setup) -> Step:
    """As it is before it is taken; equal stages take copies of it."""
    layout = partition(setup)
    return make_step(setup, layout, _keeper(setup, layout))


def _keeper(setup: Setup, layout: Partition) -> Keeper:
    size, accumulates, contiguous = sizes(setup), _accumulates(setup), _contiguous(setup)
    if accumulates_in_fp32(setup):
        return Compact(layout, _owner_frees(accumulates=accumulates, contiguous=contiguous))
    if contiguous:
        return Together(layout, size.accumulation if accumulates else size.model)
    return InPlace(layout, size.accumulation if accumulates else size.model)


def _rules(setup: Setup, *, accumulates: bool, contiguous: bool) -> Rules:
    """Stage 1 puts ``grad_accum`` into its bucket, all others the gradient (1253-1254)."""
    zero, size = setup.deepspeed.zero_optimization, sizes(setup)
    return Rules(
        bucket_numel=zero.reduce_bucket_size,
        element_bytes=size.accumulation if accumulates else size.model,
        communication_bytes=size.communication,
        converts=size.communication != size.accumulation if accumulates else size.converts,
        way=_way(zero, contiguous=contiguous),
        compact=accumulates_in_fp32(setup),
    )


def _way(zero: Zero, *, contiguous: bool) -> Way:
    if not contiguous:
        return "flatten"
    return "scatter" if zero.reduce_scatter else "in_place"


def _owner_frees(*, accumulates: bool, contiguous: bool) -> When:
    """Only a contiguous bucket's owners clear ``grad_accum`` at once (2179-2182)."""
    if not accumulates:
        return "end"
    return "now" if contiguous else "step"


def _others_free(zero: Zero, *, stage2: bool, contiguous: bool) -> When:
    """Without a contiguous bucket, overlap keeps gradients for one reduction more (2262-2267)."""
    if not stage2:
        return "end"
    return "next" if zero.overlap_comm and not contiguous else "now"
