"""The bytes of whole parameters: what a gather allocates, and when it is free again.

Line numbers are of partition_parameters.py in runtime/zero of DeepSpeed 0.19.8.
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
    copies: bool
    """Waiting copies each member out of the buffer (795)."""
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
    status: list[Status] = field(default_factory=list)
    in_flight: dict[int, Handle] = field(default_factory=dict)
    _storage: dict[int, Storage] = field(default_factory=dict)
    _recomputed: dict[int, deque[Storage]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing is whole at first."""
        self.status = [Status.AWAY] * len(self.pieces)

    def gather(self, timeline: Timeline, parameters: Sequence[int]) -> None:
        """Start the gather of parameters that are away, group by group (1540-1602)."""
        ordered = sorted(parameters, key=lambda p: (self.pieces[p].expert, p))
        for _, group in groupby(ordered, key=lambda p: self.pieces[p].expert):
            members = tuple(group)
            if self.pieces[members[0]].degree == 1:
                self._alias(timeline, members)
            elif self.sequential or len(members) == 1:
                self._one_by_one(timeline, members)
            elif self.all_reduce:
                self._summed(timeline, members)
            else:
                self._coalesced(timeline, members)

    def wait(self, timeline: Timeline, parameter: int) -> None:
        """The parameter is needed now (716-732, 760-803)."""
        handle = self.in_flight.pop(parameter)
        self._complete(timeline, handle)
        self._drop(timeline, handle.buffer)

    def settle(self, timeline: Timeline) -> list[int]:
        """Finish all gathers under way; their buffers stay until `forget` (coordinator:196-200)."""
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

    def hold(self, timeline: Timeline, parameter: int) -> None:
        """Gather one parameter at once, into a buffer of its own (2047-2054, 2142)."""
        self._own(timeline, parameter, self.pieces[parameter].padded_numel)
        self.status[parameter] = Status.HERE

    def _alias(self, timeline: Timeline, members: tuple[int, ...]) -> None:
        """Nobody to gather from: the partition is the parameter (61-106)."""
        for p in members:
            self._own(timeline, p, self.pieces[p].numel if self.copies_to_device else 0)
        self._start(members, Handle(members=members, buffer=Storage(0, 0), copies=False))

    def _one_by_one(self, timeline: Timeline, members: tuple[int, ...]) -> None:
        """A buffer for each, which becomes the parameter (1373-1403)."""
        for p in members:
            if self.copies_to_device:
                self._spike(timeline, self.pieces[p].partition_numel)
            self._own(timeline, p, self.pieces[p].padded_numel)
        self._start(members, Handle(members=members, buffer=Storage(0, 0), copies=False))

    def _summed(self, timeline: Timeline, members: tuple[int, ...]) -> None:
        """One buffer of which the parameters are views; the last one frees it (1447-1465)."""
        size = self.element_bytes * sum(self.pieces[p].padded_numel for p in members)
        timeline.add(Term.GATHERED_WEIGHTS, size)
        storage = Storage(size, len(members))
        self._storage.update(dict.fromkeys(members, storage))
        self._start(members, Handle(members=members, buffer=Storage(0, 0), copies=False))

    def _coalesced(self, timeline: Timeline, members: tuple[int, ...]) -> None:
        """A flat buffer for all, copied out when the first of them is needed (1329-1371)."""
        size = self.element_bytes * sum(self.pieces[p].padded_numel for p in members)
        timeline.add(Term.GATHERED_WEIGHTS, size)
        if self.copies_to_device:
            self._spike(timeline, sum(self.pieces[p].partition_numel for p in members))
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

    def _own(self, timeline: Timeline, parameter: int, numel: int) -> None:
        size = numel * self.element_bytes
        timeline.add(Term.GATHERED_WEIGHTS, size)
        self._storage[parameter] = Storage(size, 1)

    def _spike(self, timeline: Timeline, numel: int) -> None:
        timeline.spike(Term.GATHERED_WEIGHTS, numel * self.element_bytes)

    def _drop(self, timeline: Timeline, storage: Storage) -> None:
        storage.holders -= 1
        if storage.holders == 0:
            timeline.add(Term.GATHERED_WEIGHTS, -storage.size)
