"""When ZeRO-3 fetches, prefetches and releases: the parameter coordinator.

Line numbers are of partitioned_param_coordinator.py in runtime/zero of DeepSpeed 0.19.8. The
first micro-step only records the order of modules: parameters are fetched when they are needed and
released at once. From the second on the order is known, so parameters are prefetched, and kept if
they are soon needed again.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import accumulate

from planner.engines.deepspeed.zero3_gather import Gathers, Status
from planner.engines.deepspeed.zero3_partition import Piece
from planner.memory.timeline import Timeline

_NEVER = -1


class Mode(Enum):
    """``ZeRoTraceMode`` (57-63)."""

    INVALID = auto()
    RECORD = auto()
    COMPLETE = auto()


@dataclass(slots=True)
class Trace:
    """The modules of one forward and backward pass, in the order in which they are entered."""

    modules: list[range] = field(default_factory=list)
    uses: list[tuple[int, int]] = field(default_factory=list)
    """Parameter, and the step that uses it; in fetching order (240-264)."""
    traversed: list[int] = field(default_factory=list)
    """Elements of all modules before a step."""

    def finish(self, pieces: Sequence[Piece]) -> None:
        """Derive what the complete trace is asked for."""
        sizes = [sum(pieces[p].numel for p in module) for module in self.modules]
        self.traversed = [0, *accumulate(sizes)]
        self.uses = [(p, step) for step, module in enumerate(self.modules) for p in module]


@dataclass(slots=True, kw_only=True)
class Coordinator:
    """Fetches before use, releases after use, and looks ahead."""

    gathers: Gathers
    prefetch_numel: int
    """``stage3_prefetch_bucket_size``."""
    max_live_numel: int
    """``stage3_max_live_parameters``: bounds prefetching only (453-454)."""
    max_reuse_numel: int
    """``stage3_max_reuse_distance``."""
    mode: Mode = Mode.INVALID
    trace: Trace = field(default_factory=Trace)
    _step: int = 0
    _queued: int = 0
    """How many uses of the trace have been fetched or passed over."""
    _available_numel: int = 0
    _fetched_for: list[int] = field(default_factory=list)
    """By parameter: the latest step that it has been fetched for (118)."""
    _positions: list[list[int]] = field(default_factory=list)
    _releases: dict[tuple[int, range], tuple[int, ...]] = field(default_factory=dict)
    """Decisions are made once and kept (``lru_cache``, 637)."""

    def reset(self, timeline: Timeline) -> None:
        """Before a forward pass (264-303)."""
        self._give_up_flights(timeline)
        if self.mode is Mode.RECORD:
            self.trace.finish(self.gathers.pieces)
            self._index()
            self.mode = Mode.COMPLETE
        elif self.mode is Mode.INVALID:
            self.mode = Mode.RECORD
        self._fetched_for = [_NEVER] * len(self.gathers.pieces)
        self._step = self._queued = self._available_numel = 0

    def fetch(self, timeline: Timeline, module: range) -> None:
        """A module is about to be used (305-341, 365-484)."""
        self._follow(timeline, module)
        status, flights = self.gathers.status, self.gathers.in_flight
        self._gather(timeline, [p for p in module if status[p] is Status.AWAY])
        for p in module:
            if p in flights:
                self.gathers.wait(timeline, p)
        if self.mode is Mode.COMPLETE:
            self._pass_over(module)
            self._prefetch(timeline)
        self._step += 1

    def release(self, timeline: Timeline, module: range, *, recomputing: bool) -> None:
        """A module has been used (488-533)."""
        chosen: Sequence[int] = module
        if self.mode is Mode.COMPLETE:
            chosen = self._to_release(module)
        for p in chosen:
            keep = recomputing and self.gathers.pieces[p].saved
            self._release(timeline, p, keep=keep)

    def release_all(self, timeline: Timeline) -> None:
        """Before the optimizer's step (537-552)."""
        for p in range(len(self.gathers.pieces)):
            if p in self.gathers.in_flight:
                self.gathers.wait(timeline, p)
            self._release(timeline, p)

    def _follow(self, timeline: Timeline, module: range) -> None:
        """Record the module, or compare it with the record (204-238)."""
        if self.mode is Mode.RECORD:
            self.trace.modules.append(module)
        elif self.mode is Mode.COMPLETE and not self._expected(module):
            self._give_up_flights(timeline)
            self.mode = Mode.INVALID
            self.trace = Trace()
            self._releases.clear()

    def _expected(self, module: range) -> bool:
        modules = self.trace.modules
        return self._step < len(modules) and modules[self._step] == module

    def _index(self) -> None:
        """Where each parameter is used."""
        self._positions = [[] for _ in self.gathers.pieces]
        for p, step in self.trace.uses:
            self._positions[p].append(step)

    def _gather(self, timeline: Timeline, parameters: Sequence[int]) -> None:
        if parameters:
            self._available_numel += sum(self.gathers.pieces[p].numel for p in parameters)
            self.gathers.gather(timeline, parameters)

    def _pass_over(self, module: range) -> None:
        """Take off the queue what has just been fetched (417-431)."""
        waiting = sum(1 for p in module if self._fetched_for[p] < self._step)
        seen: Counter[int] = Counter()
        while self._queued < len(self.trace.uses) and len(seen) < waiting:
            p, step = self.trace.uses[self._queued]
            self._queued += 1
            self._fetched_for[p] = step
            seen[p] += 1

    def _prefetch(self, timeline: Timeline) -> None:
        """Gather ahead until the bucket is full; the last one may overshoot (451-481)."""
        room = min(self.max_live_numel - self._available_numel, self.prefetch_numel)
        status, uses, pieces = self.gathers.status, self.trace.uses, self.gathers.pieces
        chosen: dict[int, None] = {}
        numel = 0
        while self._queued < len(uses) and numel < room:
            p, step = uses[self._queued]
            self._queued += 1
            self._fetched_for[p] = max(self._fetched_for[p], step)
            if status[p] is Status.AWAY and p not in chosen:
                chosen[p] = None
                numel += pieces[p].numel
        self._gather(timeline, list(chosen))

    def _to_release(self, module: range) -> tuple[int, ...]:
        key = (self._step, module)
        if key not in self._releases:
            self._releases[key] = tuple(p for p in module if self._is_done(p))
        return self._releases[key]

    def _is_done(self, parameter: int) -> bool:
        """Not persistent, not fetched for later, not used again soon (638-666)."""
        if self.gathers.pieces[parameter].persistent:
            return False
        if self._fetched_for[parameter] > self._step:
            return False
        following = next((s for s in self._positions[parameter] if s >= self._step), None)
        if following is None:
            return True
        traversed = self.trace.traversed
        return traversed[following] - traversed[self._step] >= self.max_reuse_numel

    def _release(self, timeline: Timeline, parameter: int, *, keep: bool = False) -> None:
        if self.gathers.status[parameter] is Status.HERE:
            self.gathers.release(timeline, parameter, keep=keep)
            self._available_numel -= self.gathers.pieces[parameter].numel

    def _give_up_flights(self, timeline: Timeline) -> None:
        """Finish and release what was prefetched for nothing (196-200)."""
        for p in self.gathers.settle(timeline):
            self._release(timeline, p)
        self.gathers.forget(timeline)
