"""What the allocator asks of CUDA: segments, and pages of expandable segments.

Source: PyTorch 2.13, c10/cuda/CUDACachingAllocator.cpp: alloc_block, release_block,
ExpandableSegment, find_expandable_block, map_block, try_allocate_expandable_block, unmap_block.
"""

from collections.abc import Callable
from typing import Final

from planner.memory.allocator.blocks import FREE, IN_USE, UNMAPPED, Block, Pool, Range
from planner.units import MIB, TIB, round_up

PAGE_BYTES: Final = 2 * MIB
"""Addresses of segments are multiples of it."""

Watcher = Callable[[str, int, int, int], None]
"""Told what is done: the action as PyTorch's snapshots name it, address, bytes, stream."""


class Driver:
    """Memory of the device that one process takes and returns.

    Addresses only break ties between free blocks of one size. They are handed out upwards, each
    once, which CUDA does not promise.
    """

    __slots__ = ("_next_address", "_watcher", "capacity_bytes", "peak_bytes", "taken_bytes")

    def __init__(self, capacity_bytes: int | None, watcher: Watcher | None) -> None:
        self.capacity_bytes = capacity_bytes
        """What can be had; None: as much as is asked for."""
        self.taken_bytes = 0
        self.peak_bytes = 0
        self._next_address = PAGE_BYTES
        self._watcher = watcher

    def segment(self, size: int, stream: int, pool: Pool) -> Block | None:
        """Take memory for a segment: one block, in no pool; None if there is not so much."""
        if not self._take(size):
            return None
        block = Block(self._addresses(size), size, stream, pool)
        self._tell("segment_alloc", block.address, size, stream)
        return block

    def give_back(self, block: Block) -> None:
        """Return a free block that is a whole segment, and out of its pool."""
        block.pool.remove(block)
        self.taken_bytes -= block.size
        self._tell("segment_free", block.address, block.size, block.stream)

    def expand(self, pool: Pool, size: int, stream: int, page: int) -> Block | None:
        """A block of at least ``size`` in an expandable segment, in no pool; None: no memory.

        The lowest addresses that are wide enough are taken, free blocks among them; what was
        mapped on the way stays with the pool if there is not enough.
        """
        block = self._wide_enough(pool, size, stream) or self._range(pool, stream, page)
        if block.state == UNMAPPED and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            after = block.after
            assert after is not None
            if not self._map(after, min(size - block.size, after.size)):
                return None
            block = after  # it has swallowed the one before
        pool.remove(block)
        return block

    def unmap(self, block: Block) -> None:
        """Return the pages that lie wholly in a free block of an expandable segment."""
        addresses = block.expandable
        assert addresses is not None
        start, end = addresses.whole_pages(block)
        if start >= end:
            return
        block.pool.remove(block)
        _cut(block, start, end)
        block.state = UNMAPPED
        block.swallow(block.before)
        block.swallow(block.after)
        block.pool.add(block)
        self.taken_bytes -= end - start
        self._tell("segment_unmap", start, end - start, block.stream)

    def _wide_enough(self, pool: Pool, size: int, stream: int) -> Block | None:
        for unmapped in pool.unmapped(stream):
            before = unmapped.before
            first = before if before is not None and before.state != IN_USE else unmapped
            if _width(first, size) >= size:
                return first
        return None

    def _range(self, pool: Pool, stream: int, page: int) -> Block:
        """New addresses, for an eighth more than the device has."""
        wanted = TIB if self.capacity_bytes is None else self.capacity_bytes * 9 // 8
        size = round_up(wanted, page)
        addresses = Range(self._addresses(size), size, page)
        block = Block(addresses.start, size, stream, pool, addresses)
        block.state = UNMAPPED
        pool.add(block)
        return block

    def _map(self, block: Block, size: int) -> bool:
        """Put memory behind the front of an unmapped block: all of it or none."""
        assert block.expandable is not None
        mapped = round_up(size, block.expandable.page)
        if not self._take(mapped):
            return False
        self._tell("segment_map", block.address, mapped, block.stream)
        block.pool.remove(block)
        _cut(block, block.address, block.address + mapped)
        block.state = FREE
        block.swallow(block.before)
        block.swallow(block.after)
        block.pool.add(block)
        return True

    def _take(self, size: int) -> bool:
        taken = self.taken_bytes + size
        if self.capacity_bytes is not None and taken > self.capacity_bytes:
            return False
        self.taken_bytes = taken
        self.peak_bytes = max(self.peak_bytes, taken)
        return True

    def _addresses(self, size: int) -> int:
        start = self._next_address
        self._next_address += round_up(size, PAGE_BYTES)
        return start

    def _tell(self, action: str, address: int, size: int, stream: int) -> None:
        if self._watcher is not None:
            self._watcher(action, address, size, stream)


def _width(block: Block, enough: int) -> int:
    """Bytes of a block and those behind it until one is in use, or it is enough."""
    width = 0
    each: Block | None = block
    while each is not None and each.state != IN_USE and width < enough:
        width += each.size
        each = each.after
    return width


def _cut(block: Block, start: int, end: int) -> None:
    """Leave the block these addresses; what it had before and behind is another of its state."""
    if start > block.address:
        _beside(block, block.address, start).insert_before(block)
    if end < block.address + block.size:
        _beside(block, end, block.address + block.size).insert_after(block)
    block.address, block.size = start, end - start


def _beside(block: Block, start: int, end: int) -> Block:
    part = Block(start, end - start, block.stream, block.pool, block.expandable)
    part.state = block.state
    block.pool.add(part)
    return part
