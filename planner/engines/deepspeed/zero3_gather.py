"""The bytes of whole parameters: what a gather allocates, and when it is free again.

Line numbers are of partition_parameters.py in runtime/zero of DeepSpeed 0.19.8; `coordinator` is
partitioned_param_coordinator.py there.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import groupby

from planner.engines.deepspeed.zero3_partition import Piece
from planner.memory.terms import Term
from planner.memory.timeline import Timeline


class Status(Enum):
    """``ZeroParamStatus``."""

    AWAY = auto()
    IN_FLIGHT = auto()
    HERE = auto()


@dataclass(slots=True)
class Storage:
    """Bytes that are free when nobody holds them any more."""

    size: int
    holders: int


@dataclass(slots=True, kw_only=True)
class Handle:
    """One gather under way (``AllGatherCoalescedHandle``, 735-805)."""

    members: tuple[int, ...]
    buffer: Storage
    """The flat receive buffer; every member that has not been waited for holds it."""
    copies: bool = False
    """Waiting copies each member out of the buffer (795)."""
    inputs: Storage = field(default_factory=lambda: Storage(0, 1))
    """Partitions brought from the host; the collective holds them until it is waited for."""
    complete: bool = False


@dataclass(slots=True, kw_only=True)
class Gathers:
    """Which parameters are whole, and on what storage."""

    pieces: Sequence[Piece]
    element_bytes: int
    sequential: bool
    """``stage3_allgather_sequential``."""
    all_reduce: bool
    """``stage3_use_all_reduce_for_fetch_params``."""
    copies_to_device: bool
    """Partitions lie on the host and are copied to the device to be sent (1359-1361)."""
    secondary_degree: int
    """Above 1, hpZ: a released parameter leaves a second partition over so many ranks."""
    status: list[Status] = field(default_factory=list)
    in_flight: dict[int, Handle] = field(default_factory=dict)
    _storage: dict[int, Storage] = field(default_factory=dict)
    _secondary: set[int] = field(default_factory=set)
    _recomputed: dict[int, deque[Storage]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing is whole at first."""
        self.status = [Status.AWAY] * len(self.pieces)

    def gather(self, timeline: Timeline, parameters: Sequence[int]) -> None:
        """Start the gather of parameters that are away, group by group (1540-1602)."""
        if len(parameters) == 1:
            self._gather_group(timeline, (parameters[0],))
            return
        for _, group in groupby(sorted(parameters, key=self._order), key=self._group):
            self._gather_group(timeline, tuple(group))

    def _gather_group(self, timeline: Timeline, members: tuple[int, ...]) -> None:
        """One collective, or one each.

        A world of one has nobody to gather from (61-106, 1559-1560).
        """
        if self.pieces[members[0]].degree == 1:
            self._alias(timeline, members)
        elif self.sequential or len(members) == 1:
            self._one_by_one(timeline, members)
        elif self.all_reduce and members[0] not in self._secondary:
            self._summed(timeline, members)
        else:
            self._coalesced(timeline, members)

    def _group(self, parameter: int) -> tuple[bool, tuple[bool, bool]]:
        """What has a second partition first (coordinator:595-602), then by process group."""
        return parameter not in self._secondary, self.pieces[parameter].process_group

    def _order(self, parameter: int) -> tuple[tuple[bool, tuple[bool, bool]], int]:
        return self._group(parameter), parameter

    def wait(self, timeline: Timeline, parameter: int) -> None:
        """The parameter is needed now (716-732, 760-803)."""
        handle = self.in_flight.pop(parameter)
        self._complete(timeline, handle)
        self._drop(timeline, handle.buffer)

    def settle(self, timeline: Timeline) -> list[int]:
        """Finish all gathers under way; buffers stay until `forget` (coordinator:189-193)."""
        for handle in self.in_flight.values():
            self._complete(timeline, handle)
        return list(self.in_flight)

    def forget(self, timeline: Timeline) -> None:
        """Drop the registry of gathers under way, and with it their buffers."""
        for handle in self.in_flight.values():
            self._drop(timeline, handle.buffer)
        self.in_flight.clear()

    def release(self, timeline: Timeline, parameter: int, *, keep: bool = False) -> None:
        """Give a whole parameter up (314-329); ``keep``: a recomputed graph still holds it."""
        self._make_secondary(timeline, parameter)
        self.status[parameter] = Status.AWAY
        storage = self._storage.pop(parameter)
        if keep:
            self._recomputed.setdefault(parameter, deque()).append(storage)
        else:
            self._drop(timeline, storage)

    def use_recomputed(self, timeline: Timeline, parameter: int) -> None:
        """The backward pass has used what the recomputed graph held of a parameter."""
        for storage in self._recomputed.pop(parameter, ()):
            self._drop(timeline, storage)

    def hold(self, timeline: Timeline, parameters: Sequence[int]) -> None:
        """Gather at once, each into a buffer of its own (2035-2054, 2142-2148)."""
        inputs = sum(self._input_numel(p) for p in parameters) * self.element_bytes
        timeline.add(Term.GATHERED_WEIGHTS, inputs)
        for p in parameters:
            aliased = len(parameters) > 1 and self.pieces[p].degree == 1
            self._own(timeline, p, 0 if aliased else self.pieces[p].padded_numel)
            self.status[p] = Status.HERE
        timeline.add(Term.GATHERED_WEIGHTS, -inputs)

    def invalidate_secondary(self, timeline: Timeline) -> None:
        """New weights: second partitions are dropped (stage3.py:755-759, 2846)."""
        size = sum(self._secondary_numel(p) for p in self._secondary) * self.element_bytes
        timeline.add(Term.WEIGHTS, -size)
        self._secondary.clear()

    def make_all_secondary(self, timeline: Timeline) -> None:
        """The first partitioning makes them, too (1765-1770)."""
        for p in range(len(self.pieces)):
            self._make_secondary(timeline, p)

    def _make_secondary(self, timeline: Timeline, parameter: int) -> None:
        """The second partition, unless it is there or lies on the host (1900-1947)."""
        if self.secondary_degree > 1 and parameter not in self._secondary:
            size = self._secondary_numel(parameter) * self.element_bytes
            timeline.add(Term.WEIGHTS, size)
            self._secondary.add(parameter)

    def _secondary_numel(self, parameter: int) -> int:
        if self.copies_to_device:
            return 0
        return self.pieces[parameter].padded_numel // self.secondary_degree

    def _input_numel(self, parameter: int) -> int:
        """What is copied from the host to be sent."""
        if not self.copies_to_device:
            return 0
        if parameter in self._secondary:
            return self.pieces[parameter].padded_numel // self.secondary_degree
        return self.pieces[parameter].partition_numel

    def _alias(self, timeline: Timeline, members: tuple[int, ...]) -> None:
        """Nobody to gather from: the partition is the parameter (61-106)."""
        for p in members:
            self._own(timeline, p, self.pieces[p].numel if self.copies_to_device else 0)
        self._start(members, Handle(members=members, buffer=Storage(0, len(members))))

    def _one_by_one(self, timeline: Timeline, members: tuple[int, ...]) -> None:
        """A buffer for each, which becomes the parameter (1373-1403)."""
        inputs = sum(self._input_numel(p) for p in members) * self.element_bytes
        for p in members:
            self._own(timeline, p, self.pieces[p].padded_numel)
        if inputs:
            timeline.add(Term.GATHERED_WEIGHTS, inputs)
        handle = Handle(members=members, buffer=Storage(0, len(members)), inputs=Storage(inputs, 1))
        self._start(members, handle)

    def _summed(self, timeline: Timeline, members: tuple[int, ...]) -> None:
        """One buffer of which the parameters are views; the last one frees it (1447-1465)."""
        size = self.element_bytes * sum(self.pieces[p].padded_numel for p in members)
        timeline.add(Term.GATHERED_WEIGHTS, size)
        storage = Storage(size, len(members))
        self._storage.update(dict.fromkeys(members, storage))
        self._start(members, Handle(members=members, buffer=Storage(0, len(members))))

    def _coalesced(self, timeline: Timeline, members: tuple[int, ...]) -> None:
        """A flat buffer for all, copied out when the first of them is needed (1329-1371)."""
        size = self.element_bytes * sum(self.pieces[p].padded_numel for p in members)
        timeline.add(Term.GATHERED_WEIGHTS, size)
        if inputs := sum(self._input_numel(p) for p in members):
            timeline.spike(Term.GATHERED_WEIGHTS, inputs * self.element_bytes)
        buffer = Storage(size, len(members))
        self._start(members, Handle(members=members, buffer=buffer, copies=True))

    def _start(self, members: tuple[int, ...], handle: Handle) -> None:
        for p in members:
            self.status[p] = Status.IN_FLIGHT
            self.in_flight[p] = handle

    def _complete(self, timeline: Timeline, handle: Handle) -> None:
        if handle.complete:
            return
        for p in handle.members:
            if handle.copies:
                self._own(timeline, p, self.pieces[p].numel)
            self.status[p] = Status.HERE
        handle.complete = True
        self._drop(timeline, handle.inputs)

    def _own(self, timeline: Timeline, parameter: int, numel: int) -> None:
        size = numel * self.element_bytes
        timeline.add(Term.GATHERED_WEIGHTS, size)
        self._storage[parameter] = Storage(size, 1)

    def _drop(self, timeline: Timeline, storage: Storage) -> None:
        storage.holders -= 1
        if storage.holders == 0 and storage.size:
            timeline.add(Term.GATHERED_WEIGHTS, -storage.size)
