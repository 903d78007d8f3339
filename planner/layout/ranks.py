"""Where a global rank stands on every axis, and with whom it shares a process group.

DeepSpeed lays ranks out as pipeline stage, then data, then sequence, then tensor parallelism, the
last one fastest: PipeModelDataParallelTopology (runtime/pipe/topology.py:246), AutoTP's mesh
(utils/groups.py:193), Ulysses (runtime/sequence_parallel/parallel_state_sp.py:30).
"""

from typing import Literal, NamedTuple

from planner.spec.layout import Layout

Axis = Literal["dp", "sp", "tp", "pp"]

ExpertGrouping = Literal["lane", "stage"]
"""Which ranks share out the experts, ``ep`` consecutive ones at a time.

lane: the ranks of one tensor-parallel index, as for experts that tensor parallelism cuts too
(utils/groups.py:536, ``_get_expert_parallel_ranks``). stage: all ranks of a pipeline stage, as for
experts that stay whole (groups.py:399, and module_inject/auto_ep_folding.py:131 with AutoTP).
Without tensor parallelism both are the same.
"""

Ranks = tuple[int, ...]


class Coordinates(NamedTuple):
    """A rank's index on each axis, slowest first."""

    pp: int
    dp: int
    sp: int
    tp: int


class PartitionIndex(NamedTuple):
    """Where a rank stands in its two ZeRO groups."""

    dense: int
    expert: int


def coordinates(rank: int, layout: Layout) -> Coordinates:
    """Indices of a global rank, ``0 <= rank < layout.num_devices``."""
    rest, tp = divmod(rank, layout.tp)
    rest, sp = divmod(rest, layout.sp)
    pp, dp = divmod(rest, layout.dp)
    return Coordinates(pp, dp, sp, tp)


def global_rank(place: Coordinates, layout: Layout) -> int:
    """The rank at these coordinates."""
    return ((place.pp * layout.dp + place.dp) * layout.sp + place.sp) * layout.tp + place.tp


def axis_group(rank: int, axis: Axis, layout: Layout) -> Ranks:
    """The ranks that differ from ``rank`` on one axis only, ascending; ``rank`` is among them."""
    place = coordinates(rank, layout)
    degree: int = getattr(layout, axis)
    return tuple(global_rank(place._replace(**{axis: i}), layout) for i in range(degree))


def zero_group(rank: int, layout: Layout) -> Ranks:
    """The ranks over which ZeRO partitions what is not a routed expert, in partition order.

    Data and sequence parallelism together (groups.py:907): with an ``mpu`` of Ulysses, which is
    how transformers models are trained (ulysses_sp.py), all ranks of the stage with the same tp.
    """
    first = global_rank(coordinates(rank, layout)._replace(dp=0, sp=0), layout)
    return tuple(first + i * layout.tp for i in range(layout.zero_degree))


def expert_group(rank: int, layout: Layout, grouping: ExpertGrouping) -> Ranks:
    """The ranks that hold different experts and exchange tokens; index = which experts."""
    pool, place = _expert_pool(rank, layout, grouping)
    start = place - place % layout.ep
    return pool[start : start + layout.ep]


def expert_zero_group(rank: int, layout: Layout, grouping: ExpertGrouping) -> Ranks:
    """The ranks that hold the same experts and partition their state, in partition order."""
    pool, place = _expert_pool(rank, layout, grouping)
    return pool[place % layout.ep :: layout.ep]


def expert_zero_degree(layout: Layout, grouping: ExpertGrouping) -> int:
    """Ranks over which ZeRO partitions the state of a rank's routed experts."""
    lanes = layout.tp if grouping == "stage" else 1
    return layout.zero_degree * lanes // layout.ep


def partition_index(rank: int, layout: Layout, grouping: ExpertGrouping) -> PartitionIndex:
    """Which partition of the dense and of the expert parameters a rank owns."""
    place = coordinates(rank, layout)
    dense = place.dp * layout.sp + place.sp
    expert_place = dense if grouping == "lane" else rank % (layout.num_devices // layout.pp)
    return PartitionIndex(dense, expert_place // layout.ep)


def secondary_group(rank: int, size: int) -> Ranks:
    """ZeRO++ hpZ: the consecutive ranks that keep a second partition (groups.py:925)."""
    start = rank - rank % size
    return tuple(range(start, start + size))


def _expert_pool(rank: int, layout: Layout, grouping: ExpertGrouping) -> tuple[Ranks, int]:
    """The ranks among which experts are dealt out, in order, and the place of ``rank`` there."""
    if grouping == "lane":
        pool = zero_group(rank, layout)
        place = coordinates(rank, layout)
        return pool, place.dp * layout.sp + place.sp
    size = layout.num_devices // layout.pp
    start = rank - rank % size
    return tuple(range(start, start + size)), rank - start
