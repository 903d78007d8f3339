"""Where ZeRO-1 and ZeRO-2 keep the reduced gradients that a rank owns, until the step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from planner.engines.deepspeed.partition import Partition, Run, runs
from planner.memory.terms import Term
from planner.memory.timeline import Timeline

When = Literal["now", "next", "end", "step", "kept"]
"""At once; before the next reduction; at the end of the backward pass; when the optimizer step
comes to the parameter's group; not at all, because it is what is kept."""


class Keeper(Protocol):
    """One way to keep owned gradients."""

    owner_frees: When
    """When the owner of a gradient outside the bucket gives up the tensor that autograd left."""

    def begin(self, *, boundary: bool) -> None:
        """A backward pass begins; at the boundary a step follows."""

    def prepare(self, timeline: Timeline, bucket: Sequence[int]) -> None:
        """Before a bucket is reduced."""

    def keep(self, timeline: Timeline, bucket: Sequence[int]) -> None:
        """After a bucket was reduced: owners take their share."""

    def close(self, timeline: Timeline) -> None:
        """Finish the last backward pass of a step, while its buckets are still there."""

    def end(self, timeline: Timeline) -> None:
        """Finish a backward pass, after its buckets are freed."""

    def storage(self, group: int) -> tuple[Run, ...]:
        """Bytes that a rank frees when the step is done with the kept gradients of a group."""

    def restart(self) -> None:
        """Forget what the step has used up."""


def add_runs(timeline: Timeline, term: Term, many: Sequence[Run], scale: int = 1) -> None:
    """Book each run on its ranks, ``scale`` times."""
    for value, owners in many:
        if value:
            timeline.add(term, value * scale, owners)


@dataclass(slots=True)
class Together:
    """``grads_in_partition``: one buffer with every parameter that a rank touches, whole.

    The next micro-step fills a second one, which is added to the first. Source:
    runtime/zero/stage_1_and_2.py:2185-2203 and 1038-1048 of DeepSpeed 0.19.8.
    """

    layout: Partition
    element_bytes: int
    owner_frees: When = "now"
    _missing: list[int] = field(default_factory=list)
    """By rank: elements of the buffer that is still to be allocated in this backward pass."""
    _held: bool = False

    def begin(self, *, boundary: bool) -> None:
        """Nothing."""

    def prepare(self, timeline: Timeline, bucket: Sequence[int]) -> None:
        """Nothing."""

    def keep(self, timeline: Timeline, bucket: Sequence[int]) -> None:
        """Owners of any of the parameters allocate the buffer if they have none yet."""
        if not self._missing:
            self._missing = expand(self.layout.touched)
        for parameter in bucket:
            first, last = self.layout.places[parameter].owners
            waiting = self._missing[first:last]
            if any(waiting):
                self._missing[first:last] = [0] * len(waiting)
                for size, (start, end) in runs(waiting, 1):
                    if size:
                        size_bytes = size * self.element_bytes
                        timeline.add(Term.OWNED_GRADIENTS, size_bytes, (first + start, first + end))

    def close(self, timeline: Timeline) -> None:
        """Nothing."""

    def end(self, timeline: Timeline) -> None:
        """Free a second buffer, which has been added to the first."""
        self._missing = []
        if self._held:
            add_runs(timeline, Term.OWNED_GRADIENTS, self.layout.touched, -self.element_bytes)
        self._held = True

    def storage(self, group: int) -> tuple[Run, ...]:
        """All of the buffer, with the last group."""
        if group < len(self.layout.groups) - 1:
            return ()
        return tuple(Run(size * self.element_bytes, owners) for size, owners in self.layout.touched)

    def restart(self) -> None:
        """Start without a buffer."""
        self._held = False


@dataclass(slots=True)
class InPlace:
    """``contiguous_gradients: false``: the tensors that autograd left, each parameter whole."""

    layout: Partition
    element_bytes: int
    owner_frees: When = "kept"
    _held: bool = False

    def begin(self, *, boundary: bool) -> None:
        """Nothing."""

    def prepare(self, timeline: Timeline, bucket: Sequence[int]) -> None:
        """Nothing."""

    def keep(self, timeline: Timeline, bucket: Sequence[int]) -> None:
        """From here on they count as owned."""
        for parameter in bucket:
            place = self.layout.places[parameter]
            size = place.numel * self.element_bytes
            timeline.add(Term.GRADIENTS, -size, place.owners)
            timeline.add(Term.OWNED_GRADIENTS, size, place.owners)

    def close(self, timeline: Timeline) -> None:
        """Nothing."""

    def end(self, timeline: Timeline) -> None:
        """Those of a later micro-step have been added to the first ones and go."""
        if self._held:
            add_runs(timeline, Term.OWNED_GRADIENTS, self.layout.touched, -self.element_bytes)
        self._held = True

    def storage(self, group: int) -> tuple[Run, ...]:
        """Name the group's own tensors."""
        touched = self.layout.groups[group].touched
        return tuple(Run(size * self.element_bytes, owners) for size, owners in touched)

    def restart(self) -> None:
        """Start without gradients."""
        self._held = False


@dataclass(slots=True)
class Compact:
    """fp32 accumulation of a 16-bit model: one flat fp32 partition a group.

    It is allocated with the first owned slice and lives to the end of the step. Source:
    runtime/zero/stage_1_and_2.py:1259-1322 of DeepSpeed 0.19.8.
    """

    layout: Partition
    owner_frees: When
    _missing: list[bytearray] = field(default_factory=list)
    """By group and partition: 1 if its buffer is still to be allocated."""

    def __post_init__(self) -> None:
        """Everything is missing."""
        self.restart()

    def begin(self, *, boundary: bool) -> None:
        """Nothing."""

    def prepare(self, timeline: Timeline, bucket: Sequence[int]) -> None:
        """Owners allocate the partition of each group of which they see the first slice."""
        for parameter in bucket:
            place = self.layout.places[parameter]
            self._allocate(timeline, place.group, place.first, place.last + 1)

    def keep(self, timeline: Timeline, bucket: Sequence[int]) -> None:
        """Slices were added while the bucket was reduced."""

    def close(self, timeline: Timeline) -> None:
        """Partitions without any parameter are allocated too."""
        for index in range(len(self.layout.groups)):
            self._allocate(timeline, index, 0, len(self._missing[index]))

    def end(self, timeline: Timeline) -> None:
        """Nothing."""

    def storage(self, group: int) -> tuple[Run, ...]:
        """Name the partition, which itself serves as the gradient."""
        degree = len(self._missing[group])
        shape = self.layout.groups[group]
        return (Run(4 * shape.partition_numel, (0, degree * shape.ranks_per_partition)),)

    def restart(self) -> None:
        """All partitions are gone."""
        self._missing = [
            bytearray(b"\x01") * (group.padded_numel // group.partition_numel)
            for group in self.layout.groups
        ]

    def _allocate(self, timeline: Timeline, index: int, first: int, last: int) -> None:
        missing = self._missing[index]
        group = self.layout.groups[index]
        scale = group.ranks_per_partition
        start = missing.find(1, first, last)
        while start >= 0:
            end = missing.find(0, start, last)
            end = last if end < 0 else end
            missing[start:end] = bytes(end - start)
            size = 4 * group.partition_numel
            timeline.add(Term.OWNED_GRADIENTS, size, (start * scale, end * scale))
            start = missing.find(1, end, last)


def expand(many: Sequence[Run]) -> list[int]:
    """List the value of each rank."""
    return [value for value, (start, end) in many for _ in range(start, end)]
