"""Stretches of addresses, and the pools in which those that are free wait.

Source: PyTorch 2.13, c10/cuda/CUDACachingAllocator.cpp: Block, BlockPool, BlockComparatorSize,
get_free_block.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from planner.memory.allocator.settings import Settings

IN_USE, FREE, UNMAPPED = range(3)
"""What a block is: a tensor's (or a stream still uses it), cached, or addresses without memory."""

_ADDRESS_BITS: Final = 56
_ADDRESSES: Final = 2**_ADDRESS_BITS - 1


class Block:
    """A stretch of a segment; its neighbours in the segment are its ``before`` and ``after``."""

    __slots__ = (
        "address",
        "after",
        "before",
        "born",
        "events",
        "expandable",
        "pool",
        "requested",
        "size",
        "state",
        "stream",
        "uses",
    )

    def __init__(
        self, address: int, size: int, stream: int, pool: "Pool", expandable: "Range | None" = None
    ) -> None:
        self.address, self.size, self.stream, self.pool = address, size, stream, pool
        self.expandable = expandable
        self.state = IN_USE
        self.before: Block | None = None
        self.after: Block | None = None
        self.requested = 0
        """Bytes that were asked for."""
        self.uses: frozenset[int] = frozenset()
        """Other streams that were told to use it."""
        self.events = 0
        """Of those, how many have not got past its end."""
        self.born = 0
        """Searches of the pool before it was put there."""

    @property
    def alone(self) -> bool:
        """It is a whole segment."""
        return self.before is None and self.after is None

    @property
    def reach(self) -> int:
        """Size to which it can grow in place."""
        after = self.after
        return self.size + (after.size if after is not None and after.state == UNMAPPED else 0)

    def insert_after(self, other: "Block") -> None:
        """Become the neighbour behind ``other``."""
        self.before, self.after = other, other.after
        if other.after is not None:
            other.after.before = self
        other.after = self

    def insert_before(self, other: "Block") -> None:
        """Become the neighbour before ``other``."""
        self.before, self.after = other.before, other
        if other.before is not None:
            other.before.after = self
        other.before = self

    def swallow(self, other: "Block | None") -> bool:
        """Take over a neighbour of the same state, which leaves its pool."""
        if other is None or other.state != self.state:
            return False
        other.pool.remove(other)
        if other is self.before:
            self.address = other.address
            self.before = other.before
            if self.before is not None:
                self.before.after = self
        else:
            self.after = other.after
            if self.after is not None:
                self.after.before = self
        self.size += other.size
        return True


class Range:
    """The addresses of an expandable segment."""

    __slots__ = ("page", "size", "start")

    def __init__(self, start: int, size: int, page: int) -> None:
        self.start, self.size, self.page = start, size, page

    def whole_pages(self, block: Block) -> tuple[int, int]:
        """First and last address of the pages that lie in the block; equal or crossed: none."""
        first = -(-(block.address - self.start) // self.page)
        last = (block.address + block.size - self.start) // self.page
        return self.start + first * self.page, self.start + last * self.page


class Pool:
    """Blocks of one kind of size, those of each stream from small to large, then by address.

    A block stands in its list as ``size << 56 | address``, so that comparing is comparing integers.
    """

    __slots__ = ("_blocks", "_orders", "_unmapped", "searches", "small")

    def __init__(self, *, small: bool) -> None:
        self.small = small
        self.searches = 0
        """Counted for the garbage collection only."""
        self._orders: defaultdict[int, list[int]] = defaultdict(list)
        self._blocks: dict[int, Block] = {}
        self._unmapped: defaultdict[int, list[int]] = defaultdict(list)

    def add(self, block: Block) -> None:
        """Put a block here, free or unmapped."""
        if block.state == UNMAPPED:
            insort(self._unmapped[block.stream], block.address)
            self._blocks[block.address] = block
            return
        block.born = self.searches
        key = block.size << _ADDRESS_BITS | block.address
        insort(self._orders[block.stream], key)
        self._blocks[key] = block

    def remove(self, block: Block) -> None:
        """Take a block out that is here."""
        if block.state == UNMAPPED:
            order, key = self._unmapped[block.stream], block.address
        else:
            order = self._orders[block.stream]
            key = block.size << _ADDRESS_BITS | block.address
        del order[bisect_left(order, key)]
        del self._blocks[key]

    def take(self, size: int, stream: int) -> Block | None:
        """The smallest free block that holds ``size``, out of the pool."""
        order = self._orders[stream]
        place = bisect_left(order, size << _ADDRESS_BITS)
        if place == len(order):
            return None
        return self._blocks.pop(order.pop(place))

    def take_by(self, settings: Settings, size: int, stream: int) -> Block | None:
        """As `take`, where settings restrict or prefer."""
        order = self._orders[stream]
        place = self._choose(order, bisect_left(order, size << _ADDRESS_BITS), settings)
        if place == len(order):
            return None
        limit, found = settings.max_split_bytes, order[place] >> _ADDRESS_BITS
        if limit is not None and size < limit <= found:
            return None
        if limit is not None and limit <= size <= found - settings.max_non_split_rounding_bytes:
            return None
        return self._blocks.pop(order.pop(place))

    def _choose(self, order: list[int], place: int, settings: Settings) -> int:
        """Among expandable blocks the one that can grow least; none if they are switched off."""
        while place < len(order) and self._blocks[order[place]].expandable is not None:
            if settings.expandable_segments:
                after = place + 1
                if after == len(order) or (
                    self._blocks[order[after]].reach >= self._blocks[order[place]].reach
                ):
                    break
            place += 1
        return place

    def largest_first(self, stream: int, least: int) -> list[Block]:
        """Free blocks of the stream of at least that size, from large to small."""
        order = self._orders[stream]
        found = order[bisect_left(order, least << _ADDRESS_BITS) :]
        return [self._blocks[key] for key in reversed(found)]

    def smallest(self, stream: int, least: int) -> Block | None:
        """What `take` would take."""
        order = self._orders[stream]
        place = bisect_left(order, least << _ADDRESS_BITS)
        return self._blocks[order[place]] if place < len(order) else None

    def unmapped(self, stream: int) -> Iterator[Block]:
        """Addresses without memory, in order."""
        return (self._blocks[address] for address in self._unmapped[stream])

    def free(self) -> list[Block]:
        """All free blocks, stream by stream, from small to large."""
        orders = (order for _, order in sorted(self._orders.items()))
        return [self._blocks[key] for order in orders for key in order]
