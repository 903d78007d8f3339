"""How many allocations and frees a second the model of PyTorch's caching allocator replays.

    python experiments/010-allocator/bench.py

Processor time, the best of some rounds, on a drawn sequence: sizes from 32 B to 256 MiB, evenly in
their logarithm, some hundreds of tensors alive. A baseline of pure Python tells machines apart.
"""

import random
import time
from collections.abc import Callable

from planner.memory.allocator.caching import CachingAllocator
from planner.memory.allocator.settings import Settings
from planner.units import GIB, MIB

NUM_EVENTS = 200_000
ROUNDS = 5
SETTINGS = {
    "default": Settings(),
    "expandable_segments": Settings(expandable_segments=True),
    "max_split_size_mb:64": Settings(max_split_bytes=64 * MIB),
}


def drawn(num_events: int, seed: int = 0) -> list[tuple[int, int]]:
    """Events: a tensor and its bytes, or 0 when it dies."""
    draw = random.Random(seed)  # noqa: S311 - nothing secret
    events: list[tuple[int, int]] = []
    live: list[int] = []
    for number in range(num_events):
        if live and draw.random() < 0.5:  # noqa: PLR2004 - as many deaths as births
            events.append((live.pop(draw.randrange(len(live))), 0))
        else:
            events.append((number, int(2 ** draw.uniform(5, 28))))
            live.append(number)
    return events


def replay(events: list[tuple[int, int]], settings: Settings) -> CachingAllocator:
    """All events through an empty allocator."""
    allocator = CachingAllocator(settings)
    allocate, free = allocator.allocate, allocator.free
    for key, size in events:
        if size:
            allocate(key, size)
        else:
            free(key)
    return allocator


def best_seconds(action: Callable[[], object]) -> float:
    """Processor time."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Print events per second and what was reserved."""
    baseline = best_seconds(lambda: sum(number for number in range(10_000_000)))
    print(f"baseline: {1000 * baseline:.0f} ms for ten million additions in Python")
    events = drawn(NUM_EVENTS)
    for name, settings in SETTINGS.items():
        allocator = replay(events, settings)
        seconds = best_seconds(lambda settings=settings: replay(events, settings))  # type: ignore[misc]
        print(
            f"{name:22} {NUM_EVENTS / seconds:>9,.0f} events/s, peak "
            f"{allocator.peak_allocated_bytes / GIB:.2f} GiB allocated, "
            f"{allocator.peak_reserved_bytes / GIB:.2f} GiB reserved"
        )


if __name__ == "__main__":
    main()
