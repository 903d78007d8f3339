"""What the engine keeps of a stage's parameters, and how high its own work goes.

One set of numbers for each stage below ZeRO-3; activations come on top elsewhere. Sizes are those
of the rules in `engines.deepspeed`; what differs between the ranks of a stage is taken at the
worst of them.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from planner.engines.deepspeed.allreduce import allreduce_bytes
from planner.engines.deepspeed.bf16_optimizer import uses_bf16_optimizer
from planner.engines.deepspeed.dtypes import NORM_BYTES, Sizes, sizes
from planner.engines.deepspeed.offload import offloads
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
from planner.spec.layout import Layout
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


class Members(NamedTuple):
    """A parameter group of a stage before ranks share it; elements."""

    ends: Ints
    """Where each parameter ends in the flat group."""
    numel: int
    largest: int
    expert: bool


class Content(NamedTuple):
    """What a stage's optimizer gets; the same for whatever shares it."""

    members: tuple[Members, ...]
    kinds: tuple[tuple[int, ...], tuple[int, ...]]
    """Elements of the parameters that all ranks have, and of experts."""
    buckets: tuple[tuple[int, int], ...]
    """Elements of all and of the largest parameter that are reduced together at a step's end."""

    @property
    def numel(self) -> int:
        """Elements of all."""
        return sum(each.numel for each in self.members)

    @property
    def largest(self) -> int:
        """Elements of the largest parameter."""
        return max(each.largest for each in self.members)


def make_content(setup: Setup) -> Content:
    """Parameters by group, and the buckets in which they come in the optimizer's order."""
    parameters = setup.parameters
    grouped = list(parameter_groups(setup))
    groups = [np.asarray([parameters[i].numel for i in own], dtype=np.int64) for own in grouped]
    ordered = np.concatenate(groups)
    limit = setup.deepspeed.zero_optimization.reduce_bucket_size
    return Content(
        members=tuple(
            Members(np.cumsum(own), int(own.sum()), int(own.max()), parameters[at[0]].expert)
            for own, at in zip(groups, grouped, strict=True)
        ),
        kinds=(
            tuple(p.numel for p in parameters if not p.expert),
            tuple(p.numel for p in parameters if p.expert),
        ),
        buckets=tuple(
            (int(ordered[start:stop].sum()), int(ordered[start:stop].max()))
            for start, stop in _buckets(ordered, limit)
        ),
    )


def _buckets(numels: Ints, limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of parameters that are reduced together: as many as the bucket holds, or one."""
    ends = np.cumsum(numels)
    start = 0
    while start < len(numels):
        before = ends[start] - numels[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield start, stop
        start = stop


class Group(NamedTuple):
    """A parameter group as ranks share it; elements."""

    members: Members
    padded: int
    part: int
    """Of one rank."""
    degree: int
    """Ranks that share its state."""
    scale: int
    """Neighbouring ranks of the stage that have the same partition."""

    def touched(self) -> Ints:
        """Elements of the parameters of which each rank of the stage owns some, counted whole."""
        bounds = np.concatenate([[0], self.members.ends])
        first = np.arange(self.degree) * self.part
        lowest = np.searchsorted(bounds[1:], first, side="right")
        highest = np.searchsorted(bounds[:-1], first + self.part, side="left")
        held = np.maximum(0, bounds[highest] - bounds[np.minimum(lowest, highest)])
        return np.repeat(held, self.scale)


def groups_of(content: Content, layout: Layout) -> list[Group]:
    """The parameter groups of a stage as a layout shares them."""
    made = []
    for members in content.members:
        degree = layout.expert_zero_degree if members.expert else layout.zero_degree
        padded = round_up(members.numel, ALIGNMENT * degree)
        scale = layout.zero_degree // degree
        made.append(Group(members, padded, padded // degree, degree, scale))
    return made


def make_state(setup: Setup, content: Content) -> State:
    """Numbers of a stage below ZeRO-3, for the optimizer that DeepSpeed would choose.

    ``setup``: without its parameters, which are in ``content``.
    """
    if uses_bf16_optimizer(setup.training, setup.layout, setup.deepspeed):
        return _bf16(setup, content)
    return _partitioned(setup, content) if setup.layout.zero_stage else _whole(setup, content)


def _whole(setup: Setup, content: Content) -> State:
    """Stage 0: see `engines.deepspeed.unpartitioned`."""
    size, kind = sizes(setup), master_kind(setup)
    total, largest = content.numel, content.largest
    master = 0 if kind == "none" else FP32_BYTES * total
    tensors = [total] if kind == "flat" else [n for own in content.kinds for n in own]
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
        reduce_top=gradients + _allreduce(content.kinds, size.model, size.communication),
        step_top=gradients + casts[kind],
        host_bytes=0,
    )


def _bf16(setup: Setup, content: Content) -> State:
    """`BF16_Optimizer`: see `engines.deepspeed.bf16_optimizer`."""
    size, groups = sizes(setup), groups_of(content, setup.layout)
    padded, parts = sum(g.padded for g in groups), sum(g.part for g in groups)
    largest = content.largest
    weights, master = size.model * padded, FP32_BYTES * parts
    flat = size.accumulation * padded
    flat_kinds = tuple(
        tuple(group.padded for group in groups if group.members.expert == expert)
        for expert in (False, True)
    )
    states = sum(state_bytes(setup.training, group.part) for group in groups)
    temporaries = max(temporary_bytes(setup.training, [group.part]) for group in groups)
    gradients = size.model * content.numel
    casts = 0 if size.accumulation == FP32_BYTES else FP32_BYTES * parts
    differs = size.accumulation != size.model
    return State(
        resident=weights + master + flat + states,
        init_top=max(2 * weights, weights + master + flat) + size.model * parts,
        gradients=gradients,
        kept_always=setup.layout.zero_stage == 0 and leaves_bf16_gradients(setup.deepspeed.version),
        buffers=0,
        owned=0,
        hook_top=largest * size.accumulation if differs else 0,
        reduce_top=gradients + _allreduce(flat_kinds, size.accumulation, size.communication),
        step_top=gradients + max(casts + temporaries, bool(casts) * FP32_BYTES * largest),
        host_bytes=0,
    )


@lru_cache(maxsize=4096)
def _allreduce(kinds: tuple[tuple[int, ...], ...], element: int, communication: int) -> int:
    """Copies while gradients are all-reduced, one kind after the other."""
    return max(allreduce_bytes(kind, element, communication) for kind in kinds)


def _partitioned(setup: Setup, content: Content) -> State:
    """Stages 1 and 2: see `engines.deepspeed.zero12_optimizer`."""
    size, offload = sizes(setup), offloads(setup)
    groups = groups_of(content, setup.layout)
    whole = size.model * content.numel
    weights = size.model * sum(group.padded for group in groups)
    parts = [group.part for group in groups]
    states = sum(state_bytes(setup.training, part) for part in parts)
    buffer = size.model * content.largest
    held = np.sum([group.touched() for group in groups], axis=0)
    owned = 0 if offload else size.model * int(held.max())
    zero = setup.deepspeed.zero_optimization
    bucket = zero.reduce_bucket_size * size.model
    overlaps = bool(zero.overlap_comm) and setup.layout.pp == 1
    early = owned if overlaps and setup.layout.zero_stage == 1 else 0
    gradients = whole if setup.layout.zero_stage == 1 else 0
    change = max(0, _reduction(setup, content, groups, held)) if gradients else 0
    return State(
        resident=weights + (buffer if offload else FP32_BYTES * sum(parts) + states),
        init_top=_init_top(setup, groups, whole=whole, buffer=buffer if offload else 0),
        gradients=gradients,
        kept_always=False,
        # With overlap stage 1 reduces in the last backward pass, as gradients come.
        buffers=bucket * (1 + overlaps) + early,
        owned=owned,
        hook_top=0,
        reduce_top=max(gradients + change, owned)
        + bucket * (1 + (overlaps or setup.layout.pp > 1)),
        step_top=0 if offload else owned + _step(setup, groups, size),
        host_bytes=_on_host(setup, parts, held, size, buffer) if offload else 0,
    )


def _init_top(setup: Setup, groups: Sequence[Group], *, whole: int, buffer: int) -> int:
    """Flatten, clone the master partition, make gradients once: see `zero12_init`."""
    element, fp32 = sizes(setup).model, 0 if offloads(setup) else FP32_BYTES
    on_device = flattens_on_device(setup.deepspeed.version)
    used = top = whole
    for group in groups:
        flat, padding = group.padded * element, (group.padded - group.members.numel) * element
        if on_device and setup.capacity_bytes - used >= flat:
            top = max(top, used + flat + padding)
        used += padding
        top = max(top, used + (element + fp32) * group.part)
        used += fp32 * group.part
    return max(top, used + buffer + fp32 * sum(group.part for group in groups))


def _step(setup: Setup, groups: Sequence[Group], size: Sizes) -> int:
    """Beside what is owned: norms and checks, flat gradients, casts, the optimizer's own."""
    check = max(NORM_BYTES, overflow_check_bytes(setup))
    cast = 0 if size.model == FP32_BYTES else FP32_BYTES
    padding = size.model * sum(group.padded - group.members.numel for group in groups)
    return padding + max(
        max(
            check * min(group.part, group.members.largest),
            (size.model + cast) * group.part,
            cast * group.part + temporary_bytes(setup.training, [group.part]),
        )
        for group in groups
    )


def _on_host(setup: Setup, parts: Sequence[int], held: Ints, size: Sizes, buffer: int) -> int:
    """As `offload.offload_host_bytes`, at the rank that keeps most there."""
    states = sum(state_bytes(setup.training, part, on_host=True) for part in parts)
    waits = setup.layout.zero_stage > 1 and setup.micro_steps > 1
    touched = size.model * int(held.max()) if waits else 0
    return (2 * FP32_BYTES + size.model) * sum(parts) + states + buffer + touched


def _reduction(setup: Setup, content: Content, groups: Sequence[Group], held: Ints) -> int:
    """How far stage 1's reduction goes above its gradients, in the optimizer's order.

    What is in a bucket has left its gradients; what has been reduced before is with its owners.
    """
    limit = setup.deepspeed.zero_optimization.reduce_bucket_size
    if any(elements > limit for elements, _ in content.buckets):
        return max(_one_by_one(setup, content, groups, held))
    size, first, offload = sizes(setup), groups[0], offloads(setup)
    elements, largest = np.asarray(content.buckets).T
    reduced = np.cumsum(elements)
    before = reduced - elements
    several = (before // first.part != (reduced - 1) // first.part) | (
        reduced > first.members.numel
    )
    cast = size.communication if size.converts else 0
    copies = elements * (size.model * several * (setup.layout.zero_degree > 1) + cast)
    if offload:
        for check in _checks(setup, largest, first.part):
            copies = np.maximum(copies, check)
        return int((copies - size.model * reduced).max())
    most = np.concatenate([[0], np.maximum.accumulate(held)])

    def owned(numel: Ints) -> Ints:
        ranks = -(-np.minimum(numel, first.members.numel) // first.part)
        kept: Ints = size.model * most[ranks * first.scale]
        return kept

    tops = np.maximum(copies + owned(before), owned(reduced)) - size.model * reduced
    return int(tops.max())


def _one_by_one(
    setup: Setup, content: Content, groups: Sequence[Group], held: Ints
) -> Iterator[int]:
    """The same with gradients beyond a bucket's size.

    Their owners give them up at once, others at the end.
    """
    element, offload = sizes(setup).model, offloads(setup)
    limit = setup.deepspeed.zero_optimization.reduce_bucket_size
    first, part = groups[0], max(group.part for group in groups)
    kept = held * (not offload)
    moved = reduced = 0
    for elements, largest in content.buckets:
        inside = reduced + elements <= first.members.numel
        oversized = elements > limit
        moved += 0 if oversized else elements
        own, start = (first.part, reduced) if inside else (part, None)
        copy = copy_bytes(setup, elements, own, start)
        if offload:
            copy = max(copy, *map(int, _checks(setup, largest, first.part)))
        before, reduced = reduced, reduced + elements
        yield copy + element * (_owned(kept, first, before) - moved)
        yield element * (_owned(kept, first, reduced) - moved)
        if oversized and inside:
            kept[_ranks(first, before, reduced)] -= elements


def _ranks(group: Group, start: int, stop: int) -> slice:
    """Ranks that own some of these elements of a flat group."""
    last = (stop - 1) // group.part + 1
    return slice(start // group.part * group.scale, last * group.scale)


def _checks(setup: Setup, largest: Any, part: int) -> Iterator[Any]:
    """Of what goes to the host: norm of a slice, check of a parameter, clone of a large one."""
    yield NORM_BYTES * np.minimum(largest, part)
    yield offload_check_bytes(setup) * largest
    yield sizes(setup).model * largest


def copy_bytes(setup: Setup, elements: int, part: int, start: int | None = None) -> int:
    """The flat copy of a bucket, and its cast: see `engines.deepspeed.reduction`.

    ``part``: elements of a rank's partition; ``start``: where in the flat group the bucket is, if
    that is known. A copy holds neighbouring slices until it is larger than a bucket.
    """
    size = sizes(setup)
    limit = setup.deepspeed.zero_optimization.reduce_bucket_size
    cast = size.communication if size.converts else 0
    if start is None or elements > MANY_SLICES * part:
        several = setup.layout.zero_degree > 1
        return min(elements, limit + part) * (size.model * several + cast)
    return max(
        numel * (size.model * (slices > 1) + cast)
        for numel, slices in _portions(start, start + elements, part, limit)
    )


MANY_SLICES = 16
"""From here on copies are as large as they can be, or nearly so."""


def _portions(start: int, stop: int, part: int, limit: int) -> Iterator[tuple[int, int]]:
    """Elements of each copy, and how many ranks they go to."""
    numel = slices = 0
    while start < stop:
        if numel > limit:
            yield numel, slices
            numel = slices = 0
        end = min(stop, (start // part + 1) * part)
        numel, slices, start = numel + end - start, slices + 1, end
    yield numel, slices


def _owned(kept: Ints, first: Group, reduced: int) -> int:
    """Most elements kept by a rank that owns some of what has been reduced, or none."""
    if not reduced:
        return 0
    return max(0, int(kept[_ranks(first, 0, min(reduced, first.members.numel))].max()))
