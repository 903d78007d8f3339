"""What a user can turn, and what each turn costs.

A knob takes a spec and returns the turned one, or None where it is already turned or means
nothing. Whether the framework accepts the result is not the knob's business.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from planner.spec.deepspeed import OffloadOptimizer, OffloadParam, Zero
from planner.spec.frameworks import axes
from planner.spec.layout import ZeroStage
from planner.spec.load import Spec

Turn = Callable[[Spec], Spec | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One change to a file."""

    change: str
    """As one writes it in the file."""
    price: str
    """What it costs or gains besides memory."""
    turn: Turn


def _training(**changes: Any) -> Turn:
    def turn(spec: Spec) -> Spec | None:
        turned = replace(spec, training=replace(spec.training, **changes))
        return turned if turned != spec else None

    return turn


def _zero(*stages: int, **changes: Any) -> Turn:
    """A key of ``zero_optimization`` that means something in these stages."""

    def turn(spec: Spec) -> Spec | None:
        if spec.fixed_layout.zero_stage not in stages:
            return None
        zero: Zero = replace(spec.deepspeed.zero_optimization, **changes)
        turned = replace(spec, deepspeed=replace(spec.deepspeed, zero_optimization=zero))
        return turned if turned != spec else None

    return turn


def _stage(zero_stage: ZeroStage) -> Turn:
    def turn(spec: Spec) -> Spec | None:
        if zero_stage == spec.fixed_layout.zero_stage or spec.framework.engine != "deepspeed":
            return None
        return replace(spec, layout=replace(spec.fixed_layout, zero_stage=zero_stage))

    return turn


def _double(axis: str) -> Turn:
    """Twice the degree of an axis on the same devices, at the expense of dp."""

    def turn(spec: Spec) -> Spec | None:
        layout = spec.fixed_layout
        if layout.dp % 2 or axis not in axes(spec.framework.engine):
            return None
        degree = {axis: 2 * getattr(layout, axis)}
        return replace(spec, layout=replace(layout, dp=layout.dp // 2, **degree))

    return turn


def _half_micro_batch(spec: Spec) -> Spec | None:
    size = spec.training.micro_batch_size
    if size % 2:
        return None
    return replace(spec, training=replace(spec.training, micro_batch_size=size // 2))


_STAGES: tuple[tuple[ZeroStage, str], ...] = (
    (0, "no partition of optimizer state"),
    (1, "as stage 0, gathers weights once a step"),
    (2, "as stage 1, reduces gradients every micro-step"),
    (3, "gathers weights in every forward and backward pass"),
)

KNOBS = (
    Knob(
        change="training.recompute: full",
        price="every block's forward pass twice: a third more compute",
        turn=_training(recompute="full"),
    ),
    Knob(
        change="training.recompute: none",
        price="no forward pass twice: a quarter less compute",
        turn=_training(recompute="none"),
    ),
    Knob(
        change="training.micro_batch_size: half",
        price="twice the micro-steps, smaller matrices",
        turn=_half_micro_batch,
    ),
    Knob(
        change="training.attention: flash",
        price="none where the kernel exists",
        turn=_training(attention="flash"),
    ),
    Knob(
        change="training.loss: fused",
        price="needs a fused cross entropy (Liger)",
        turn=_training(loss="fused"),
    ),
    Knob(
        change="training.loss: chunked",
        price="the head's matrix product in pieces",
        turn=_training(loss="chunked"),
    ),
    Knob(
        change="training.keep_logits: false",
        price="the loop must drop the model's output",
        turn=_training(keep_logits=False),
    ),
    Knob(
        change="training.optimizer_kernel: fused",
        price="none",
        turn=_training(optimizer_kernel="fused"),
    ),
    Knob(
        change="training.optimizer: adamw_8bit",
        price="quantised moments",
        turn=_training(optimizer="adamw_8bit"),
    ),
    *(
        Knob(change=f"layout.zero_stage: {stage}", price=price, turn=_stage(stage))
        for stage, price in _STAGES
    ),
    Knob(
        change="layout.tp: double",
        price="all-reduces in every block",
        turn=_double("tp"),
    ),
    Knob(change="layout.pp: double", price="a longer pipeline bubble", turn=_double("pp")),
    Knob(change="layout.sp: double", price="all-to-alls in every block", turn=_double("sp")),
    Knob(
        change="zero_optimization.reduce_bucket_size: 5e7",
        price="smaller messages",
        turn=_zero(1, 2, 3, reduce_bucket_size=50_000_000),
    ),
    Knob(
        change="zero_optimization.overlap_comm: true",
        price="reduces while the backward pass goes on",
        turn=_zero(1, 2, overlap_comm=True),
    ),
    Knob(
        change="zero_optimization.overlap_comm: false",
        price="backward waits for reduction",
        turn=_zero(1, 2, 3, overlap_comm=False),
    ),
    Knob(
        change="zero_optimization.contiguous_gradients: false",
        price="fragmentation, more small messages",
        turn=_zero(1, 2, contiguous_gradients=False),
    ),
    Knob(
        change="zero_optimization.stage3_max_reuse_distance: 0",
        price="weights at the turn from forward to backward are gathered again",
        turn=_zero(3, stage3_max_reuse_distance=0),
    ),
    Knob(
        change="zero_optimization.stage3_prefetch_bucket_size: 0",
        price="gathers do not overlap with compute",
        turn=_zero(3, stage3_prefetch_bucket_size=0),
    ),
    Knob(
        change="zero_optimization.offload_optimizer: {device: cpu}",
        price="the step runs on the host, gradients cross PCIe",
        turn=_zero(1, 2, 3, offload_optimizer=OffloadOptimizer(device="cpu")),
    ),
    Knob(
        change="zero_optimization.offload_param: {device: cpu}",
        price="weights cross PCIe in every pass",
        turn=_zero(3, offload_param=OffloadParam(device="cpu")),
    ),
)
