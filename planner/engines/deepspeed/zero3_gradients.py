"""ZeRO-3's gradients: collected in one bucket, reduce-scattered, kept as partitions.

Line numbers are of stage3.py in runtime/zero of DeepSpeed 0.19.8 unless another file is named.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from planner.engines.deepspeed.dtypes import Sizes
from planner.engines.deepspeed.zero3_offload import land
from planner.engines.deepspeed.zero3_partition import Piece
from planner.memory.terms import Term
from planner.memory.timeline import Group, Timeline


@dataclass(slots=True, kw_only=True)
class Bucket:
    """Gradients that wait for a reduction (``IPGBucketZ3``, 127-146)."""

    pieces: Sequence[Piece]
    sizes: Sizes
    capacity_numel: int
    """``reduce_bucket_size``."""
    contiguous: bool
    """``contiguous_gradients``: they are copied into one buffer, which is there from the start."""
    scatters: bool
    """``reduce_scatter``; else the whole bucket is all-reduced."""
    expert_scale: bool
    """Experts are averaged over more ranks than share them (1937-1941)."""
    clones: bool
    """The communication library copies the input of a reduce-scatter (gloo does, NCCL does not)."""
    lands: bool
    """Partitions go to the host (``offload_optimizer``)."""
    accumulating: bool = False
    """Not the first micro-step of a step."""
    boundary: bool = True
    """The last micro-step of a step."""
    _members: list[int] = field(default_factory=list)
    _loose: dict[int, int] = field(default_factory=dict)
    """Bytes of gradients that did not fit the buffer."""
    _elements: int = 0

    def add(self, timeline: Timeline, parameter: int) -> None:
        """A whole gradient, already booked, joins the bucket (1569-1644)."""
        piece = self.pieces[parameter]
        if self._members and self.pieces[self._members[-1]].process_group != piece.process_group:
            self.reduce(timeline)
        if self._elements and self._elements + piece.numel > self.capacity_numel:
            self.reduce(timeline)
        size = piece.numel * self.sizes.model
        if self.contiguous and self._elements + piece.numel <= self.capacity_numel:
            timeline.add(Term.GRADIENTS, -size)
        else:
            self._loose[parameter] = size
        self._members.append(parameter)
        self._elements += piece.numel

    def reduce(self, timeline: Timeline) -> None:
        """Reduce what is there and add it to the partitions (1647-1695)."""
        if not self._members:
            return
        fits = self.contiguous and self._elements <= self.capacity_numel
        if fits and not self.scatters:
            copies = self._all_reduced(timeline)
        else:
            copies = self._scattered(timeline)
        if self.lands:
            members = [self.pieces[p] for p in sorted(self._members)]
            land(
                timeline,
                members,
                self.sizes,
                accumulating=self.accumulating,
                boundary=self.boundary,
            )
        for size in self._loose.values():
            timeline.add(Term.GRADIENTS, -size)
        timeline.add(Term.REDUCE_COPIES, -copies)
        self._members.clear()
        self._loose.clear()
        self._elements = 0

    def _scattered(self, timeline: Timeline) -> int:
        """Copies of a reduce-scatter: casts, the interleaved whole, scaled and cast partitions.

        Source: 1912-1946; runtime/comm/coalesced_collectives.py:81-141.
        """
        members = [self.pieces[p] for p in self._members]
        copies = self._cast_loose(timeline)
        padded = sum(piece.padded_numel for piece in members)
        padding = padded - sum(piece.numel for piece in members)
        single = len(members) == 1 and not padding
        whole = 0 if single else (padded + padding) * self.sizes.communication
        timeline.add(Term.REDUCE_COPIES, whole)
        if self.clones:
            timeline.spike(Term.REDUCE_COPIES, padded * self.sizes.communication)
        timeline.add(Term.REDUCE_COPIES, -padding * self.sizes.communication)
        copies += whole - padding * self.sizes.communication
        return copies + self._partition_copies(timeline, members)

    def _cast_loose(self, timeline: Timeline) -> int:
        """Gradients beside the buffer are still in the model's dtype (1919-1920)."""
        if not self.sizes.converts:
            return 0
        numel = sum(self.pieces[p].numel for p in self._loose)
        timeline.add(Term.REDUCE_COPIES, numel * self.sizes.communication)
        return numel * self.sizes.communication

    def _partition_copies(self, timeline: Timeline, members: Sequence[Piece]) -> int:
        """Partitions scaled (1941) and cast to the accumulation dtype (1943-1944)."""
        numel = sum(piece.partition_numel for piece in members)
        scaled = numel * self.sizes.communication if self.expert_scale and members[0].expert else 0
        casts = self.sizes.communication != self.sizes.accumulation
        cast = numel * self.sizes.accumulation if casts else 0
        timeline.add(Term.REDUCE_COPIES, scaled)
        timeline.add(Term.REDUCE_COPIES, cast)
        return scaled + cast

    def _all_reduced(self, timeline: Timeline) -> int:
        """Copies of an all-reduce over the buffer: scaled by one, cast (1863-1909)."""
        copies = self._elements * self.sizes.communication
        timeline.add(Term.REDUCE_COPIES, copies)
        if self.sizes.communication != self.sizes.accumulation:
            cast = self._elements * self.sizes.accumulation
            timeline.add(Term.REDUCE_COPIES, cast)
            timeline.add(Term.REDUCE_COPIES, -copies)
            copies = cast
        self._fill_short_partitions(timeline)
        return copies

    def _fill_short_partitions(self, timeline: Timeline) -> None:
        """The last ranks' partitions are short, so they are copied into zeros (1898-1904)."""
        changes = []
        for piece in (self.pieces[p] for p in self._members):
            if piece.padded_numel > piece.numel:
                size = piece.partition_numel * self.sizes.accumulation
                owners = (piece.numel // piece.partition_numel, piece.degree)
                group: Group = "expert" if piece.expert else "dense"
                changes.append((size, owners, group))
        for sign in (1, -1):
            for size, owners, group in changes:
                timeline.add(Term.REDUCE_COPIES, sign * size, owners, group)
