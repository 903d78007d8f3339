"""Muon under ZeRO-3: full gradients and momenta are gathered for the step, a bucket at a time.

The ranks of a group take turns with the matrices and then exchange what they have updated. Line
numbers are of runtime/zero/stage3.py of DeepSpeed 0.19.8.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from planner.engines.deepspeed.newton_schulz import Dtype, update_bytes
from planner.engines.deepspeed.zero3_partition import Piece, SubGroup
from planner.memory.terms import Term
from planner.memory.timeline import Timeline
from planner.units import MIB

CACHED_BYTES = 256 * MIB
"""What buffers of gatherings may stay for, all together (243)."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """``_partitioned_buffers_all_gather`` (2060-2154): partitions of one bucket become whole."""

    degree: int
    element_bytes: int
    """Of what is communicated."""
    _kept: dict[int, int] = field(default_factory=dict)
    """Bytes of the buffers that stay, by the elements of a rank; those used last come last."""

    def gather(self, timeline: Timeline, local_numel: int) -> int:
        """Book the buffers and return the bytes of the result, which the caller frees.

        A group of one rank sees its own tensors.
        """
        if self.degree == 1:
            return 0
        size = (self.degree + 1) * local_numel * self.element_bytes
        passing = self._take(timeline, local_numel, size)
        result = self.degree * local_numel * self.element_bytes
        timeline.add(Term.STEP_COPIES, result)
        timeline.add(Term.BUCKETS, -passing)
        return result

    def _take(self, timeline: Timeline, local_numel: int, size: int) -> int:
        """What goes with the gathering: nothing of buffers that stay (2098-2114)."""
        if local_numel in self._kept:
            self._kept[local_numel] = self._kept.pop(local_numel)
            return 0
        timeline.add(Term.BUCKETS, size)
        if size > CACHED_BYTES:
            return size
        while self._kept and sum(self._kept.values()) + size > CACHED_BYTES:
            timeline.add(Term.BUCKETS, -self._kept.pop(next(iter(self._kept))))
        self._kept[local_numel] = size
        return 0


@dataclass(slots=True, kw_only=True)
class MuonStep:
    """``_apply_muon_to_accumulated_grads`` (1821-1860), before the norm is taken."""

    pieces: Sequence[Piece]
    sub_groups: tuple[SubGroup, ...]
    """Those of matrices."""
    bucket_numel: int
    dtype: Dtype
    """In which gradients and momenta are gathered."""
    exchange: Exchange
    flattens: bool
    """The library gathers into one buffer before it fills a list (NCCL's does)."""

    def run(self, timeline: Timeline) -> None:
        """The name of the last update holds a bucket's gradients through the next bucket."""
        before = 0
        for group in self.sub_groups:
            for members in self._buckets(group):
                local = sum(self.pieces[p].partition_numel for p in members)
                gradients = self.exchange.gather(timeline, local)
                self._update(timeline, members, local)
                timeline.add(Term.STEP_COPIES, -before)
                before = gradients
        timeline.add(Term.STEP_COPIES, -before)

    def _buckets(self, group: SubGroup) -> Iterator[tuple[int, ...]]:
        """As many as fit ``reduce_bucket_size``, at least one (1843-1849)."""
        held: list[int] = []
        numel = 0
        for p in group.parameters:
            if held and numel + self.pieces[p].numel > self.bucket_numel:
                yield tuple(held)
                held, numel = [], 0
            held.append(p)
            numel += self.pieces[p].numel
        if held:
            yield tuple(held)

    def _update(self, timeline: Timeline, members: Sequence[int], local_numel: int) -> None:
        """``_muon_update_sub_group`` (1697-1819): momenta, cloned and gathered; then the rounds."""
        size, degree = self.exchange.element_bytes, self.exchange.degree
        timeline.add(Term.STEP_COPIES, local_numel * size)
        momenta = self.exchange.gather(timeline, local_numel)
        rounds = _Rounds(timeline, degree, size)
        for first in range(0, len(members), degree):
            self._round(rounds, [self.pieces[p] for p in members[first : first + degree]])
        rounds.end()
        timeline.add(Term.STEP_COPIES, -local_numel * size - momenta)

    def _round(self, rounds: "_Rounds", pieces: Sequence[Piece]) -> None:
        """Each rank updates one matrix; all receive all of them."""
        for rank, piece in enumerate(pieces):
            rounds.compute(rank, update_bytes(piece.matrix, self.dtype), piece.numel)
        alike = len({piece.matrix for piece in pieces}) == 1
        equal = alike and len(pieces) == rounds.degree
        largest = max(piece.numel for piece in pieces)
        rounds.exchange(0 if equal else largest)
        if self.flattens and rounds.degree > 1:
            sent = 2 * rounds.degree * largest * rounds.element_bytes
            rounds.timeline.spike(Term.STEP_COPIES, sent)


@dataclass(slots=True)
class _Rounds:
    """What the names of one round hold through the next one (1740-1795)."""

    timeline: Timeline
    degree: int
    element_bytes: int
    _results: dict[int, int] = field(default_factory=dict)
    """Elements of each rank's last update."""
    _padded: int = 0
    """Elements of one of the padded tensors: two that are sent, two lists that are received."""
    _named: int = 0
    """Elements of the one that the loop over each list saw last, when its list has gone."""

    def compute(self, rank: int, peak_bytes: int, numel: int) -> None:
        """The update of one rank; the name is taken up when it is complete."""
        owners = (rank, rank + 1)
        old = self._results.get(rank, 0)
        self.timeline.spike(Term.STEP_COPIES, peak_bytes, owners)
        self.timeline.add(Term.STEP_COPIES, (numel - old) * self.element_bytes, owners)
        self._results[rank] = numel

    def exchange(self, padded: int) -> None:
        """Padded tensors of so many elements take the place of the last ones; 0: none are made."""
        old, self._padded = self._padded, padded
        for _ in range(2):
            self._add(padded)
            self._add(-old)
        for _ in range(2):
            self._add(self.degree * padded)
            self._add(-(self.degree - 1) * old if old else 0)
        self._named += old
        if padded:
            self._add(-2 * self._named)
            self._named = 0

    def end(self) -> None:
        """All names go."""
        for rank, numel in self._results.items():
            self.timeline.add(Term.STEP_COPIES, -numel * self.element_bytes, (rank, rank + 1))
        self._add(-2 * (self.degree + 1) * self._padded - 2 * self._named)

    def _add(self, numel: int) -> None:
        self.timeline.add(Term.STEP_COPIES, numel * self.element_bytes)
