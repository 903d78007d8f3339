"""The copies that ZeRO-1 and ZeRO-2 make while one bucket of gradients is reduced.

Line numbers are of runtime/zero/stage_1_and_2.py of DeepSpeed 0.19.8.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from planner.engines.deepspeed.partition import Owners, Partition, Place, slice_numel
from planner.engines.elements import FP32_BYTES

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


class Copies(NamedTuple):
    """One reduction: allocated and freed again, on every rank and on some more."""

    reducing: int
    """Bytes of the flat copy and its cast."""
    reduced: int
    """Bytes of what holds the result while it is copied to where it belongs."""
    alone: tuple[int, int, Owners] | None
    """The same two on the ranks that make a copy though the others need none."""
    casts: tuple[tuple[int, Owners], ...]
    """fp32 casts of owned slices of the result, one after the other."""


class _Slice(NamedTuple):
    owner: int
    numel: int
    owners: Owners


@lru_cache(maxsize=4096)
def copies(layout: Partition, bucket: tuple[int, ...], rules: Rules) -> tuple[Copies, ...]:
    """Compute what the reduction of the parameters in ``bucket``, in this order, allocates.

    Flattening one tensor alone gives a view of it. Source: ``average_tensor`` (1590-1716),
    ``allreduce_and_scatter`` (1545-1588), ``allreduce_bucket`` (2359-2394),
    ``gradient_reduction_w_predivide`` (1485-1514), ``buffered_reduce_fallback`` (2538-2552).
    """
    places = [layout.places[i] for i in bucket]
    if rules.way != "scatter":
        whole = [_Slice(i, place.numel, place.owners) for i, place in enumerate(places)]
        flat = _flat_bytes(whole, rules, several=rules.way == "flatten" and len(places) > 1)
        casts = [cast for place in places for cast in _casts(_slices(layout, [place]), rules)]
        return (Copies(*flat, None, tuple(casts)),)
    made = []
    for experts in (False, True):
        own = [place for place in places if place.expert == experts]
        made += [_scatter(portion, rules) for portion in _portions(_slices(layout, own), rules)]
    if rules.compact:
        return tuple(made)
    highest = max((copy.reducing for copy in made), default=0)
    return (Copies(highest, 0, None, ()),)


def _scatter(portion: Sequence[_Slice], rules: Rules) -> Copies:
    """One flat copy; neighbouring slices of one owner are one tensor, except to that owner.

    The owner of a compact partition keeps its slices apart (1673-1683).
    """
    owners = {piece.owner for piece in portion}
    several = len(owners) > 1
    alone = None
    if not several and rules.compact and len(portion) > 1:
        alone = (*_flat_bytes(portion, rules, several=True), portion[0].owners)
        everyone = _flat_bytes(portion, rules, several=False)
        alone = (alone[0] - everyone[0], alone[1] - everyone[1], alone[2])
    return Copies(
        *_flat_bytes(portion, rules, several=several), alone, tuple(_casts(portion, rules))
    )


def _flat_bytes(portion: Sequence[_Slice], rules: Rules, *, several: bool) -> tuple[int, int]:
    """While reducing, and after: a cast outlives the flat copy that it was made of."""
    numel = sum(piece.numel for piece in portion)
    flat = rules.element_bytes * numel if several else 0
    cast = rules.communication_bytes * numel if rules.converts else 0
    return flat + cast, cast or flat


def _portions(slices: Iterator[_Slice], rules: Rules) -> Iterator[list[_Slice]]:
    """Group slices for a flat copy, which is made as soon as it exceeds the bucket's size."""
    portion: list[_Slice] = []
    numel = 0
    for piece in slices:
        if numel > rules.bucket_numel and piece.owner != portion[-1].owner:
            yield portion
            portion, numel = [], 0
        portion.append(piece)
        numel += piece.numel
    if portion:
        yield portion


def _slices(layout: Partition, places: Sequence[Place]) -> Iterator[_Slice]:
    """Yield each partition's piece of each parameter, in order."""
    for place in places:
        group = layout.groups[place.group]
        scale = group.ranks_per_partition
        for owner in range(place.first, place.last + 1):
            numel = slice_numel(place, owner, group.partition_numel)
            yield _Slice(owner, numel, (owner * scale, (owner + 1) * scale))


def _casts(
    portion: Sequence[_Slice] | Iterator[_Slice], rules: Rules
) -> Iterator[tuple[int, Owners]]:
    """fp32 copies of slices of the result before they are added to the partition (1324-1326)."""
    if rules.compact and rules.communication_bytes != FP32_BYTES:
        for piece in portion:
            yield FP32_BYTES * piece.numel, piece.owners
