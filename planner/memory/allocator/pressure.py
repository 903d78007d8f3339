"""When memory is short: what of the cache is returned, and the refusal when that was not enough.

Source: PyTorch 2.13, c10/cuda/CUDACachingAllocator.cpp; the functions are named below.
"""

from collections.abc import Hashable

from planner.memory.allocator.blocks import Pool
from planner.memory.allocator.driver import Driver


class OutOfMemoryError(Exception):
    """An allocation that the device refuses, after all that is cached has been returned."""

    def __init__(
        self,
        key: Hashable,
        *,
        wanted_bytes: int,
        allocated_bytes: int,
        reserved_bytes: int,
        free_bytes: int | None,
    ) -> None:
        super().__init__(
            f"out of memory at {key!r}: {wanted_bytes:,} bytes wanted, {allocated_bytes:,} are "
            f"allocated, {reserved_bytes - allocated_bytes:,} reserved but unallocated"
        )
        self.key = key
        self.wanted_bytes = wanted_bytes
        """What the driver was asked for."""
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes
        self.free_bytes = free_bytes
        """What the driver still had; None: a `Settings.per_process_memory_fraction` refused."""

    @property
    def fragmented_bytes(self) -> int:
        """Reserved, not allocated, and of no use to what was wanted."""
        return self.reserved_bytes - self.allocated_bytes


def return_oversize(driver: Driver, pool: Pool, size: int, stream: int, limit: int) -> bool:
    """Return one block that is not to be split and large enough, or several, from the largest.

    ``limit`` is `Settings.max_split_bytes`. Whether ``size`` may fit now. Source:
    release_available_cached_blocks.
    """
    wanted = max(size, limit)
    one = pool.smallest(stream, wanted)
    if one is not None and one.expandable is None:
        driver.give_back(one)
        return True
    returned = 0
    for block in pool.largest_first(stream, limit):
        if returned >= wanted:
            break
        if block.expandable is None:
            returned += block.size
            driver.give_back(block)
    return returned >= wanted


def collect_garbage(driver: Driver, pool: Pool, threshold_bytes: int) -> None:
    """Return whole segments that have been free for longer than most, down to a threshold.

    Source: garbage_collect_cached_blocks.
    """
    target = driver.taken_bytes - threshold_bytes
    whole = [block for block in pool.free() if block.alone]
    while target > 0 and whole:
        ages = [pool.searches - block.born for block in whole]
        mean = sum(ages) / len(whole)
        old = [
            block
            for block, age in zip(whole, ages, strict=True)
            if age >= mean and block.expandable is None
        ]
        if not old:
            return
        for block in old:
            target -= block.size
            whole.remove(block)
            driver.give_back(block)
