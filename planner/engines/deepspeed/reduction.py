"""The copies that ZeRO-1 and ZeRO-2 make while one bucket of gradients is reduced."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from planner.engines.deepspeed.dtypes import FP32_BYTES
from planner.engines.deepspeed.partition import Owners, Partition, Place, slice_numel


class Copies(NamedTuple):
    """Allocated and freed again while a bucket is reduced."""

    everyone: int
    """Bytes of the flat copy (and its cast) on every rank."""
    alone: tuple[tuple[int, Owners], ...]
    """Ranks that make a copy though the others need none."""
    casts: tuple[tuple[int, Owners], ...]
    """fp32 casts of owned slices, made while the flat copy is alive."""


Way = Literal["scatter", "in_place", "flatten"]
"""``reduce_scatter``: slices are flattened together for their owners; without it the bucket is
reduced as it is; without ``contiguous_gradients`` all its gradients are flattened."""


class Rules(NamedTuple):
    """What decides the copies."""

    bucket_numel: int
    element_bytes: int
    """Of what is in the bucket."""
    communication_bytes: int
    converts: bool
    way: Way
    compact: bool
    """Owned slices are added to an fp32 partition."""


def copies(layout: Partition, bucket: Sequence[int], rules: Rules) -> Copies:
    """Compute what the reduction of the parameters in ``bucket``, in this order, allocates.

    Flattening one tensor alone gives a view of it. Source: ``average_tensor``,
    ``allreduce_and_scatter``, ``allreduce_bucket`` and ``gradient_reduction_w_predivide``,
    ``buffered_reduce_fallback``:
    runtime/zero/stage_1_and_2.py:1590-1716, 1545-1588, 2359-2394 and 1485-1514,
    2538-2552 of 0.19.8.
    """
    places = [layout.places[i] for i in bucket]
    if rules.way != "scatter":
        numel = sum(place.numel for place in places)
        flat = numel * rules.element_bytes if rules.way == "flatten" and len(places) > 1 else 0
        cast = numel * rules.communication_bytes if rules.converts else 0
        return Copies(flat + cast, (), _casts(layout, places, rules))
    everyone = 0
    alone: tuple[tuple[int, Owners], ...] = ()
    for experts in (False, True):
        own = [place for place in places if place.expert == experts]
        for count, numel in _portions(layout, own, rules.bucket_numel):
            flat = rules.element_bytes * numel if count > 1 else 0
            cast = rules.communication_bytes * numel if rules.converts else 0
            everyone = max(everyone, flat + cast)
            if count == 1 and rules.compact and len(own) > 1:
                alone = ((rules.element_bytes * numel + cast, own[0].owners),)
    return Copies(everyone, alone, _casts(layout, places, rules))


def _portions(layout: Partition, places: Sequence[Place], limit: int) -> Iterator[tuple[int, int]]:
    """Count slices and elements of each flat copy.

    Neighbouring slices with one owner are one; a copy is made as soon as it exceeds ``limit``.
    """
    count = numel = 0
    previous = -1
    for owner, size in _slices(layout, places):
        if owner == previous and count:
            numel += size
        else:
            if numel > limit:
                yield count, numel
                count = numel = 0
            count += 1
            numel += size
        previous = owner
    if count:
        yield count, numel


def _slices(layout: Partition, places: Sequence[Place]) -> Iterator[tuple[int, int]]:
    """Owner and elements of each piece of the parameters, in order."""
    for place in places:
        if place.first == place.last:
            yield place.first, place.numel
        else:
            size = layout.groups[place.group].partition_numel
            for owner in range(place.first, place.last + 1):
                yield owner, slice_numel(place, owner, size)


def _casts(
    layout: Partition, places: Sequence[Place], rules: Rules
) -> tuple[tuple[int, Owners], ...]:
    """fp32 copies of reduced slices before they are added to the owner's fp32 partition.

    Source: ``_add_to_grad_partition_buffer``, stage_1_and_2.py:1324-1326.
    """
    if not rules.compact or rules.communication_bytes == FP32_BYTES:
        return ()
    casts = []
    for place in places:
        group = layout.groups[place.group]
        for owner in range(place.first, place.last + 1):
            scale = group.ranks_per_partition
            owners = (owner * scale, (owner + 1) * scale)
            casts.append((FP32_BYTES * slice_numel(place, owner, group.partition_numel), owners))
    return tuple(casts)
