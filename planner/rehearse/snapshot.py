"""A replay in the format of PyTorch's memory viewer, https://pytorch.org/memory_viz.

It is the dictionary that ``torch.cuda.memory._snapshot`` describes (torch/cuda/memory.py:1035 of
2.13). The viewer takes it pickled, by protocol 2 to 4, and its later versions as JSON too
(torch/utils/viz/MemoryViz.js, unpickle).
"""

import json
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.memory.allocator.blocks import FREE, Block
from planner.memory.allocator.caching import CachingAllocator
from planner.rehearse.replay import Modelled, Replayed, replay
from planner.rehearse.trace import Kind, Trace

PICKLE_PROTOCOL = 4
"""The latest that the viewer reads."""

Frame = dict[str, Any]


def write_snapshot(trace: Trace, modelled: Modelled, paths: Sequence[Path]) -> None:
    """Replay the trace and store what the allocator did: as JSON where a path ends so."""
    document = snapshot(trace, modelled)
    for path in paths:
        if path.suffix == ".json":
            path.write_text(json.dumps(document), encoding="utf-8")
        else:
            path.write_bytes(pickle.dumps(document, protocol=PICKLE_PROTOCOL))


def snapshot(trace: Trace, modelled: Modelled) -> dict[str, Any]:
    """The allocator's every step, and its segments at the end.

    For a stack trace every allocation has who made it in DeepSpeed, its label, and its phase.
    """
    history = _History(trace)
    allocator = modelled.allocator(watcher=history.watch)
    replayed = replay(trace, allocator, before=history.begin)
    history.refuse(replayed)
    return {
        "segments": [_segment(blocks, history.frames_at) for blocks in _segments(allocator)],
        "device_traces": [history.events],
        "external_annotations": history.phases,
    }


@dataclass(slots=True)
class _History:
    """The events of a replay."""

    trace: Trace
    events: list[dict[str, Any]] = field(default_factory=list)
    phases: list[dict[str, Any]] = field(default_factory=list)
    """Where they start and end, as torch.profiler's annotations are told."""
    frames_at: dict[int, list[Frame]] = field(default_factory=dict)
    """By address, those of the last allocation there."""
    _phase: str = "before the first phase"
    _frames: list[Frame] = field(default_factory=list)

    def begin(self, kind: Kind, number: int) -> None:
        """A move is about to be made."""
        if kind in {Kind.BEGIN, Kind.END}:
            self._phase = self.trace.phases[number]
            stage = "START" if kind == Kind.BEGIN else "END"
            now = len(self.events)
            note = {"device": 0, "name": self._phase, "stage": stage, "time_us": now}
            self.phases.append(note)
        if kind == Kind.ALLOCATE:
            self._frames = list(self._stack(number))

    def watch(self, action: str, address: int, size: int, stream: int) -> None:
        """The allocator tells what it does."""
        if action == "alloc":
            self.frames_at[address] = self._frames
        frees = action.startswith("free")
        event = {
            "action": action,
            "addr": address,
            "size": size,
            "stream": stream,
            "time_us": len(self.events),
            "frames": self.frames_at[address] if frees else self._frames,
        }
        if action == "alloc":
            event["category"] = self._frames[-2]["name"]
        self.events.append(event)

    def refuse(self, replayed: Replayed) -> None:
        """The end of a replay that did not come through."""
        if replayed.refused is None:
            return
        self.events.append(
            {
                "action": "oom",
                "size": replayed.refused.wanted_bytes,
                "device_free": replayed.refused.free_bytes or 0,
                "stream": 0,
                "time_us": len(self.events),
                "frames": self._frames,
            }
        )

    def _stack(self, number: int) -> Iterator[Frame]:
        entry = self.trace.entries[number]
        place, _, function = entry.site.partition(" ")
        file, _, line = place.partition(":")
        if function:
            yield {"name": function, "filename": f"deepspeed/{file}", "line": int(line)}
        yield {"name": entry.label, "filename": "term", "line": 0}
        yield {"name": self._phase, "filename": "phase", "line": 0}


def _segments(allocator: CachingAllocator) -> Iterator[list[Block]]:
    """Blocks that lie side by side in one segment, by address."""
    blocks: list[Block] = []
    for block in allocator.blocks():
        if blocks and block.before is not blocks[-1]:
            yield blocks
            blocks = []
        blocks.append(block)
    if blocks:
        yield blocks


def _segment(blocks: list[Block], frames_at: dict[int, list[Frame]]) -> dict[str, Any]:
    first = blocks[0]
    told = [_block(block, frames_at) for block in blocks]
    return {
        "device": 0,
        "address": first.address,
        "total_size": sum(block.size for block in blocks),
        "allocated_size": sum(b["size"] for b in told if b["state"] == "active_allocated"),
        "active_size": sum(b["size"] for b in told if b["state"] != "inactive"),
        "requested_size": sum(b["requested_size"] for b in told if b["state"] != "inactive"),
        "stream": first.stream,
        "segment_type": "small" if first.pool.small else "large",
        "segment_pool_id": (0, 0),
        "is_expandable": first.expandable is not None,
        "frames": [],
        "blocks": told,
    }


def _block(block: Block, frames_at: dict[int, list[Frame]]) -> dict[str, Any]:
    if block.state == FREE:
        state, frames = "inactive", []
    else:
        state = "active_awaiting_free" if block.events else "active_allocated"
        frames = frames_at[block.address]
    return {
        "address": block.address,
        "size": block.size,
        "requested_size": block.requested if frames else 0,
        "state": state,
        "frames": frames,
    }
