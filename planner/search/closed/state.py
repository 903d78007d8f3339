"""What the engine keeps of a stage's parameters, and how high its own work goes.

One set of numbers for each stage below ZeRO-3; activations come on top elsewhere. Sizes are those
of the rules in `engines.deepspeed`; what differs between the ranks of a stage is taken at the
worst of them.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from planner.engines.deepspeed.allreduce import allreduce_bytes
from planner.engines.deepspeed.bf16_optimizer import uses_bf16_optimizer
from planner.engines.deepspeed.dtypes import NORM_BYTES, Sizes, sizes
from planner.engines.deepspeed.offload import gradient_buffer_bytes, offloads
from planner.engines.deepspeed.optimizers import state_bytes, temporary_bytes
from planner.engines.deepspeed.partition import ALIGNMENT, parameter_groups
from planner.engines.deepspeed.releases import (
    flattens_on_device,
    leaves_bf16_gradients,
    offload_check_bytes,
    overflow_check_bytes,
)
from planner.engines.deepspeed.strategy import Setup
from planner.engines.deepspeed.unpartitioned import master_kind
from planner.engines.elements import FP32_BYTES
from planner.search.closed.profile import Ints
from planner.units import round_up


class State(NamedTuple):
    """Bytes of one stage; tops are above `resident`, with nothing of any micro-batch alive."""

    resident: int
    """All step long, from the first step on."""
    init_top: int
    """In all, while the engine is initialised."""
    gradients: int
    """Whole gradients between the first micro-batch's backward pass and the reduction; 0 if each
    is reduced at once."""
    kept_always: bool
    """A step leaves its gradients for the next one to add to."""
    buffers: int
    """From the first gradient of a micro-batch to the reduction."""
    owned: int
    """What is kept of reduced gradients until the step."""
    hook_top: int
    """At the end of every backward pass, beside whole gradients."""
    reduce_top: int
    step_top: int
    host_bytes: int


class Group(NamedTuple):
    """A parameter group, flat."""

    numels: Ints
    degree: int
    """Ranks that share its state."""
    scale: int
    """Neighbouring ranks of the stage that have the same partition."""

    @property
    def numel(self) -> int:
        """Elements without padding."""
        return int(self.numels.sum())

    @property
    def padded(self) -> int:
        """Elements with padding."""
        return round_up(self.numel, ALIGNMENT * self.degree)

    @property
    def part(self) -> int:
        """Elements of one rank."""
        return self.padded // self.degree

    def touched(self) -> Ints:
        """Elements of the parameters of which each rank of the stage owns some, counted whole."""
        ends = np.cumsum(self.numels)
        starts = ends - self.numels
        first = np.arange(self.degree) * self.part
        lowest = np.searchsorted(ends, first, side="right")
        highest = np.searchsorted(starts, first + self.part, side="left")
        cumulated = np.concatenate([[0], ends])
        held = np.maximum(0, cumulated[highest] - cumulated[np.minimum(lowest, highest)])
        return np.repeat(held, self.scale)


def groups_of(setup: Setup) -> list[Group]:
    """The parameter groups of a stage's optimizer."""
    layout = setup.layout
    made = []
    for members in parameter_groups(setup):
        expert = setup.parameters[members[0]].expert
        degree = layout.expert_zero_degree if expert else layout.zero_degree
        numels = np.asarray([setup.parameters[i].numel for i in members], dtype=np.int64)
        made.append(Group(numels, degree, layout.zero_degree // degree))
    return made


def make_state(setup: Setup) -> State:
    """Numbers of a stage below ZeRO-3, for the optimizer that DeepSpeed would choose."""
    if uses_bf16_optimizer(setup.training, setup.layout, setup.deepspeed):
        return _bf16(setup)
    return _partitioned(setup) if setup.layout.zero_stage else _whole(setup)


def _whole(setup: Setup) -> State:
    """Stage 0: see `engines.deepspeed.unpartitioned`."""
    size, kind = sizes(setup), master_kind(setup)
    numels = [p.numel for p in setup.parameters]
    total, largest = sum(numels), max(numels)
    master = 0 if kind == "none" else FP32_BYTES * total
    tensors = [total] if kind == "flat" else numels
    states = sum(state_bytes(setup.training, numel) for numel in tensors)
    temporaries = temporary_bytes(setup.training, tensors)
    gradients, resident = size.model * total, size.model * total + master + states
    casts = {
        "none": temporaries,
        "flat": max(2 * master, master - gradients + temporaries),
        "apart": max(FP32_BYTES * largest, master + temporaries),
    }
    zeros = 0 if kind == "none" else master + (gradients if kind == "apart" else 0) + temporaries
    return State(
        resident=resident,
        init_top=resident + zeros,
        gradients=gradients,
        kept_always=False,
        buffers=0,
        owned=0,
        hook_top=0,
        reduce_top=gradients + _allreduce(setup, numels, size),
        step_top=gradients + casts[kind],
        host_bytes=0,
    )


def _bf16(setup: Setup) -> State:
    """`BF16_Optimizer`: see `engines.deepspeed.bf16_optimizer`."""
    size, groups = sizes(setup), groups_of(setup)
    padded, parts = sum(g.padded for g in groups), sum(g.part for g in groups)
    largest = max(p.numel for p in setup.parameters)
    weights, master = size.model * padded, FP32_BYTES * parts
    flat = size.accumulation * padded
    states = sum(state_bytes(setup.training, group.part) for group in groups)
    temporaries = max(temporary_bytes(setup.training, [group.part]) for group in groups)
    gradients = size.model * sum(p.numel for p in setup.parameters)
    casts = 0 if size.accumulation == FP32_BYTES else FP32_BYTES * parts
    differs = size.accumulation != size.model
    return State(
        resident=weights + master + flat + states,
        init_top=max(2 * weights, weights + master + flat) + size.model * parts,
        gradients=gradients,
        kept_always=setup.layout.zero_stage == 0
        and leaves_bf16_gradients(setup.deepspeed.version),
        buffers=0,
        owned=0,
        hook_top=largest * size.accumulation if differs else 0,
        reduce_top=gradients + _allreduce_flat(setup, groups, size),
        step_top=gradients + max(casts + temporaries, bool(casts) * FP32_BYTES * largest),
        host_bytes=0,
    )


def _allreduce(setup: Setup, numels: Sequence[int], size: Sizes) -> int:
    """Copies while gradients are all-reduced one kind after the other."""
    kinds = [
        [n for n, p in zip(numels, setup.parameters, strict=True) if p.expert == expert]
        for expert in (False, True)
    ]
    return max(allreduce_bytes(kind, size.model, size.communication) for kind in kinds)


def _allreduce_flat(setup: Setup, groups: Sequence[Group], size: Sizes) -> int:
    """The same of flat groups; the experts' come last."""
    dense = setup.layout.zero_degree
    kinds = [[g.padded for g in groups if (g.degree == dense) == kind] for kind in (True, False)]
    return max(allreduce_bytes(kind, size.accumulation, size.communication) for kind in kinds)


def _partitioned(setup: Setup) -> State:
    """Stages 1 and 2: see `engines.deepspeed.zero12_optimizer`."""
    size, groups, offload = sizes(setup), groups_of(setup), offloads(setup)
    whole = size.model * sum(group.numel for group in groups)
    weights = size.model * sum(group.padded for group in groups)
    parts = [group.part for group in groups]
    states = sum(state_bytes(setup.training, part) for part in parts)
    buffer = gradient_buffer_bytes(setup)
    held = sum(group.touched() for group in groups)
    owned = 0 if offload else size.model * int(held.max())
    zero = setup.deepspeed.zero_optimization
    bucket = zero.reduce_bucket_size * size.model
    gradients = whole if setup.layout.zero_stage == 1 else 0
    return State(
        resident=weights + (buffer if offload else FP32_BYTES * sum(parts) + states),
        init_top=_init_top(setup, groups, size, whole=whole),
        gradients=gradients,
        kept_always=False,
        buffers=bucket,
        owned=owned,
        hook_top=0,
        reduce_top=max(
            gradients,
            max(
                (
                    gradients - size.model * flush.moved + flush.copy_bytes + flush.owned_bytes
                    for flush in reduction(setup, groups, held, offload=offload)
                ),
                default=0,
            ),
            owned,
        )
        + bucket * (2 if setup.layout.pp > 1 else 1),
        step_top=0 if offload else owned + _step(setup, groups, size),
        host_bytes=_on_host(setup, parts, held, size, buffer) if offload else 0,
    )


def _init_top(setup: Setup, groups: Sequence[Group], size: Sizes, *, whole: int) -> int:
    """Flatten, clone the master partition, make gradients once: see `zero12_init`."""
    used = top = whole
    for group in groups:
        flat, part = group.padded * size.model, group.part * size.model
        on_device = flattens_on_device(setup.deepspeed.version)
        if on_device and setup.capacity_bytes - used >= flat:
            top = max(top, used + flat + flat - group.numel * size.model)
        used += flat - group.numel * size.model
        top = max(top, used + part + FP32_BYTES * group.part)
        if not offloads(setup):
            used += FP32_BYTES * group.part
    zeros = 0 if offloads(setup) else FP32_BYTES * sum(group.part for group in groups)
    return max(top, used + zeros, used + gradient_buffer_bytes(setup) * offloads(setup))


def _step(setup: Setup, groups: Sequence[Group], size: Sizes) -> int:
    """Beside what is owned: norms and checks, flat gradients, casts, the optimizer's own."""
    check = max(NORM_BYTES, overflow_check_bytes(setup))
    cast = 0 if size.model == FP32_BYTES else FP32_BYTES
    padding = size.model * sum(group.padded - group.numel for group in groups)
    return padding + max(
        max(
            check * min(group.part, int(group.numels.max())),
            (size.model + cast) * group.part,
            cast * group.part + temporary_bytes(setup.training, [group.part]),
        )
        for group in groups
    )


def _on_host(
    setup: Setup, parts: Sequence[int], held: Ints, size: Sizes, buffer: int
) -> int:
    """As `offload.offload_host_bytes`, at the rank that keeps most there."""
    states = sum(state_bytes(setup.training, part, on_host=True) for part in parts)
    waits = setup.layout.zero_stage > 1 and setup.micro_steps > 1
    touched = size.model * int(held.max()) if waits else 0
    return (2 * FP32_BYTES + size.model) * sum(parts) + states + buffer + touched


class Flush(NamedTuple):
    """One bucket as it is reduced."""

    moved: int
    """Elements whose gradients are in a bucket or gone."""
    copy_bytes: int
    owned_bytes: int
    """Of what has been reduced before, at the worst rank that has some."""


def reduction(
    setup: Setup, groups: Sequence[Group], held: Ints, *, offload: bool
) -> Iterator[Flush]:
    """The buckets of stage 1's reduction, in the optimizer's order."""
    size = sizes(setup)
    limit = setup.deepspeed.zero_optimization.reduce_bucket_size
    numels = np.concatenate([group.numels for group in groups])
    first = groups[0]
    moved = reduced = 0
    for start, stop in buckets(numels, limit):
        elements = int(numels[start:stop].sum())
        oversized = elements > limit
        moved += 0 if oversized else elements
        copy = copy_bytes(setup, elements, [group.part for group in groups])
        if offload:
            copy = max(copy, *_checks(setup, numels[start:stop], first.part))
        yield Flush(moved, copy, 0 if offload else size.model * _owned(held, first, reduced))
        reduced += elements


def _checks(setup: Setup, numels: Ints, part: int) -> Iterator[int]:
    """Of what goes to the host: norm of a slice, check of a parameter, clone of a large one."""
    largest = int(numels.max())
    yield NORM_BYTES * min(largest, part)
    yield offload_check_bytes(setup) * largest
    yield sizes(setup).model * largest


def copy_bytes(setup: Setup, elements: int, parts: Sequence[int]) -> int:
    """The flat copy of a bucket, and its cast: see `engines.deepspeed.reduction`."""
    size = sizes(setup)
    limit = setup.deepspeed.zero_optimization.reduce_bucket_size
    portion = min(elements, limit + max(parts))
    several = setup.layout.zero_degree > 1 and elements > 1
    flat = size.model if several else 0
    return portion * (flat + (size.communication if size.converts else 0))


def _owned(held: Ints, first: Group, reduced: int) -> int:
    """Most elements held by a rank that owns some of what has been reduced."""
    if not reduced:
        return 0
    ranks = (min(reduced, first.numel) - 1) // first.part + 1
    return int(held[: ranks * first.scale].max())


def buckets(numels: Ints, limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of parameters that are reduced together: as many as the bucket holds, or one."""
    ends = np.cumsum(numels)
    start = 0
    while start < len(numels):
        before = ends[start] - numels[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield start, stop
        start = stop
