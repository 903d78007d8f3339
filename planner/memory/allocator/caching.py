"""PyTorch's caching allocator of one device: what it reserves, allocation by allocation.

A model of what the CUDA allocator does to its blocks; it allocates nothing. Source: PyTorch 2.13,
c10/cuda/CUDACachingAllocator.cpp, class DeviceCachingAllocator; its functions are named where
their rules stand. The rules are those of 2.5 to 2.13: before 2.5 (pytorch/pytorch#134338)
`Settings.max_split_bytes` and the garbage collection could fail beside expandable segments.
CUDA graphs with their pools, and ``torch.cuda.MemPool``, are left out.
"""

from collections import deque
from collections.abc import Hashable, Mapping
from typing import Final

from planner.memory.allocator.blocks import FREE, IN_USE, Block, Pool
from planner.memory.allocator.driver import Driver, Watcher
from planner.memory.allocator.pressure import OutOfMemoryError, collect_garbage, return_oversize
from planner.memory.allocator.settings import Settings
from planner.units import MIB, round_up

BLOCK_BYTES: Final = 512
"""Sizes of blocks are multiples of it: kMinBlockSize (c10/core/AllocatorConfig.h:18)."""
SMALL_BYTES: Final = MIB
"""Up to here a request is small: kSmallSize (:20)."""
SMALL_SEGMENT_BYTES: Final = 2 * MIB
"""What small requests share, and the page of an expandable segment for them: kSmallBuffer (:16)."""
LARGE_BYTES: Final = 10 * MIB
"""From here on a request has a segment of its own size: kMinLargeAlloc (:22)."""
ROUND_BYTES: Final = 2 * MIB
"""Such a segment is a multiple of it: kRoundLarge (:24)."""

_NO_LIMIT: Final = 2**63


class CachingAllocator:
    """The allocator's blocks, and how much they are; keys are whatever tells allocations apart."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        capacity_bytes: int | None = None,
        device_bytes: int | None = None,
        prompt: bool = True,
        watcher: Watcher | None = None,
    ) -> None:
        """An empty allocator.

        ``capacity_bytes`` is what the driver can give; None: as much as is asked for.
        ``device_bytes`` is what the device has, of which `Settings.per_process_memory_fraction`
        is a part; None: the capacity. ``prompt``: whenever the host allocates, the device has done
        all that its streams were given, so what `record_stream` kept is free; else only
        `synchronize` says so.
        """
        self.allocated_bytes = 0
        """In blocks of tensors, as torch.cuda.memory_allocated counts."""
        self.active_bytes = 0
        """With blocks that another stream still uses."""
        self.requested_bytes = 0
        """What tensors hold of the allocated bytes."""
        self.peak_allocated_bytes = 0
        self.num_retries = 0
        """Allocations for which all that was cached was returned first."""
        self._driver = Driver(capacity_bytes, watcher)
        self._device_bytes = capacity_bytes if device_bytes is None else device_bytes
        self._prompt, self._watcher = prompt, watcher
        self._live: dict[Hashable, Block] = {}
        self._small, self._large = Pool(small=True), Pool(small=False)
        self._waiting: dict[int, deque[Block]] = {}
        self._plain = True
        self.settings = settings or Settings()

    @property
    def settings(self) -> Settings:
        """May be changed at any time, as PyTorch's may; cached blocks stay as they are."""
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self._settings = settings
        expandable, limit = settings.expandable_segments, settings.max_split_bytes
        self._divided = any(parts > 1 for parts in settings.roundup_power2_divisions)
        self._split_below = _NO_LIMIT if limit is None or expandable else limit
        self._least_rest = BLOCK_BYTES if expandable else SMALL_BYTES + 1
        self._allowed_bytes = self._allowed()
        self._collects = (
            self._allowed_bytes is not None and settings.garbage_collection_threshold > 0
        )
        # Once there may be expandable blocks, they are looked out for.
        self._plain &= limit is None and not expandable and not self._collects

    @property
    def reserved_bytes(self) -> int:
        """Taken from the driver, as torch.cuda.memory_reserved counts."""
        return self._driver.taken_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """The most since the last `reset_peaks`."""
        return self._driver.peak_bytes

    @property
    def live(self) -> Mapping[Hashable, Block]:
        """The block of every tensor."""
        return self._live

    def reset_peaks(self) -> None:
        """As torch.cuda.reset_peak_memory_stats."""
        self.peak_allocated_bytes = self.allocated_bytes
        self._driver.peak_bytes = self._driver.taken_bytes

    def blocks(self) -> list[Block]:
        """All blocks with memory, by address."""
        waiting = {id(block): block for queue in self._waiting.values() for block in queue}
        free = self._small.free() + self._large.free()
        return sorted(
            [*self._live.values(), *waiting.values(), *free], key=lambda block: block.address
        )

    def allocate(self, key: Hashable, size_bytes: int, stream: int = 0) -> Block:
        """A block for a tensor of at least one byte.

        Raises OutOfMemoryError if the device has no room; the allocator can be used further.
        Source: malloc, alloc_found_block, should_split.
        """
        if self._waiting and self._prompt:
            self.synchronize()
        size = self.rounded(size_bytes)
        pool = self._small if size <= SMALL_BYTES else self._large
        block = pool.take(size, stream) if self._plain else self._found(pool, size, stream)
        if block is None:
            block = self._grown(key, pool, size, stream)
        rest = block.size - size
        least = BLOCK_BYTES if pool.small else self._least_rest
        if rest >= least and (pool.small or size < self._split_below):
            _split(block, size)
        block.state, block.requested = IN_USE, size_bytes
        self._live[key] = block
        self._count(block.size, size_bytes)
        if self._watcher is not None:
            self._watcher("alloc", block.address, size_bytes, stream)
        return block

    def free(self, key: Hashable) -> None:
        """Give a tensor's block back, now or when other streams are done with it.

        Source: free, insert_events.
        """
        block = self._live.pop(key)
        self.allocated_bytes -= block.size
        if self._watcher is not None:
            self._watcher("free_requested", block.address, block.requested, block.stream)
        if not block.uses:
            self._recycle(block)
            return
        block.events = len(block.uses)
        for stream in block.uses:
            self._waiting.setdefault(stream, deque()).append(block)
        block.uses = frozenset()

    def record_stream(self, key: Hashable, stream: int) -> None:
        """A stream works with a tensor: its block is not used again before that is done."""
        block = self._live[key]
        if stream != block.stream:
            block.uses |= {stream}

    def synchronize(self, stream: int | None = None) -> None:
        """The device has done what this stream, or every stream, was given so far."""
        for each in list(self._waiting) if stream is None else [stream]:
            for block in self._waiting.pop(each, ()):
                block.events -= 1
                if not block.events:
                    self._recycle(block)

    def empty_cache(self) -> None:
        """Return every segment, or page of an expandable one, that is free.

        Source: release_cached_blocks, release_blocks.
        """
        self.synchronize()
        free = self._large.free() + self._small.free()
        for block in free:
            if block.expandable is None and block.alone:
                self._driver.give_back(block)
        for block in free:
            if block.expandable is not None:
                self._driver.unmap(block)

    def rounded(self, size_bytes: int) -> int:
        """Bytes of a block for a tensor; source: round_size, roundup_power2_next_division."""
        if self._divided and size_bytes > BLOCK_BYTES:
            power = size_bytes.bit_length() - 1
            divisions = self._settings.roundup_power2_divisions
            parts = divisions[min(max(power - 20, 0), len(divisions) - 1)]
            if parts > 1 and size_bytes > BLOCK_BYTES * parts:
                return round_up(size_bytes, 2**power // parts)
        return max(BLOCK_BYTES, -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES)

    def _count(self, size: int, requested: int) -> None:
        self.active_bytes += size
        self.requested_bytes += requested
        self.allocated_bytes += size
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)

    def _recycle(self, block: Block) -> None:
        """Nobody uses the block any more; source: free_block, try_merge_blocks."""
        if self._watcher is not None:
            self._watcher("free_completed", block.address, block.requested, block.stream)
        self.active_bytes -= block.size
        self.requested_bytes -= block.requested
        block.state = FREE
        block.swallow(block.before)
        block.swallow(block.after)
        block.pool.add(block)

    def _found(self, pool: Pool, size: int, stream: int) -> Block | None:
        """A cached block, where settings have a say."""
        if self._collects:
            pool.searches += 1
        return pool.take_by(self._settings, size, stream)

    def _grown(self, key: Hashable, pool: Pool, size: int, stream: int) -> Block:
        """A block from the driver, if need be from what is returned to it; source: malloc."""
        if self._collects and self._allowed_bytes is not None:
            part = self._settings.garbage_collection_threshold
            collect_garbage(self._driver, self._large, int(part * self._allowed_bytes))
        block = self._new(pool, size, stream)
        limit = self._settings.max_split_bytes
        if block is None and limit and return_oversize(self._driver, pool, size, stream, limit):
            block = self._new(pool, size, stream)
        if block is None:
            self.empty_cache()
            self.num_retries += 1
            block = self._new(pool, size, stream)
        if block is None:
            raise self._exhausted(key, size)
        return block

    def _new(self, pool: Pool, size: int, stream: int) -> Block | None:
        """A block of which the pool has not known; source: alloc_block."""
        segment, allowed = self._segment_size(size), self._allowed_bytes
        if allowed is not None and self.reserved_bytes + segment > allowed:
            return None
        if not self._settings.expandable_segments:
            return self._driver.segment(segment, stream, pool)
        page = SMALL_SEGMENT_BYTES if pool.small else self._settings.large_segment_bytes
        return self._driver.expand(pool, size, stream, page)

    def _segment_size(self, size: int) -> int:
        """Source: get_allocation_size."""
        if size <= SMALL_BYTES:
            return SMALL_SEGMENT_BYTES
        if size < LARGE_BYTES:
            return self._settings.large_segment_bytes
        return round_up(size, ROUND_BYTES)

    def _allowed(self) -> int | None:
        fraction, total = self._settings.per_process_memory_fraction, self._device_bytes
        return None if fraction == 1 or total is None else int(fraction * total)

    def _exhausted(self, key: Hashable, size: int) -> OutOfMemoryError:
        wanted, capacity = self._segment_size(size), self._driver.capacity_bytes
        allowed = self._allowed_bytes
        refused = allowed is not None and self.reserved_bytes + wanted > allowed
        return OutOfMemoryError(
            key,
            wanted_bytes=wanted,
            allocated_bytes=self.allocated_bytes,
            reserved_bytes=self.reserved_bytes,
            free_bytes=None if refused or capacity is None else capacity - self.reserved_bytes,
        )


def _split(block: Block, size: int) -> None:
    """Leave the block its front; the rest is free."""
    rest = Block(
        block.address + size, block.size - size, block.stream, block.pool, block.expandable
    )
    rest.state = FREE
    rest.insert_after(block)
    block.size = size
    block.pool.add(rest)
