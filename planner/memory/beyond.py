"""From allocated bytes to what PyTorch reserves and what the device holds: estimates with bands.

PyTorch rounds a tensor to 512 B and takes memory from the driver in segments: 2 MiB for tensors of
up to 1 MiB, 20 MiB for those below 10 MiB, else the size rounded to 2 MiB; what is freed stays
reserved. Before an allocation fails it returns unused segments and tries again. Source: PyTorch
2.13, c10/core/AllocatorConfig.h:16-25 and 340, c10/cuda/CUDACachingAllocator.cpp
(get_allocation_size, release_cached_blocks). How much more than allocated that makes depends on
the order of sizes, so it is a band here, not a formula; see constants.yaml.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from planner.spec.cluster import Device
from planner.spec.devices import read_catalogue
from planner.units import GIB, MIB, round_up

SEGMENT_BYTES = 2 * MIB
"""Granularity of what PyTorch takes from the driver."""

LARGE_DEVICE_BYTES = 40 * GIB
"""From here on the constants for large devices hold: their contexts are larger."""

_CONSTANTS = Path(__file__).with_name("constants.yaml")


class Band(NamedTuple):
    """An estimate between a low and a high end."""

    low: int
    estimate: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Beyond:
    """What a peak of allocated bytes means for the allocator and for the device."""

    allocated_bytes: int
    reserved_low_bytes: int
    reserved_bytes: int
    reserved_high_bytes: int
    device_low_bytes: int
    device_bytes: int
    device_high_bytes: int
    assumptions: tuple[str, ...]

    @property
    def outside_bytes(self) -> int:
        """What the process holds of the device beside PyTorch's allocator."""
        return self.device_bytes - self.reserved_bytes


@cache
def constants() -> Mapping[str, Band]:
    """Read the named constants; MiB, or parts of a thousand, as their names say."""
    return {name: Band(**row) for name, row in read_catalogue(_CONSTANTS).items()}


def beyond(
    allocated_bytes: int, *, device: Device, num_groups: int, all_to_all_peers: int = 0
) -> Beyond:
    """Estimate reserved and device bytes at a peak of allocated bytes.

    ``num_groups`` counts the communicators that the rank takes part in: with DeepSpeed the default
    group, its copy for data parallelism, and one per further axis. ``all_to_all_peers`` counts the
    other ranks of the same node in groups that do all-to-all (experts, Ulysses).

    Reserved grows with allocated by ``fragmentation`` as long as the device has room; where it has
    not, unused segments go back to the driver and ``exhausted`` is left. So the high end does not
    pass the device's capacity unless what cannot be returned does: above it means out of memory.
    """
    if device.architecture == "cpu":
        return _same(allocated_bytes)
    outside = _outside(device, num_groups, all_to_all_peers)
    ample = _grown(allocated_bytes, constants()["fragmentation_per_mille"])
    short = _grown(allocated_bytes, constants()["exhausted_per_mille"])
    room = device.memory_bytes - outside.estimate
    reserved = Band(*(min(a, max(room, s)) for a, s in zip(ample, short, strict=True)))
    held = Band(
        *(
            min(a + o, max(device.memory_bytes, s + o))
            for a, s, o in zip(ample, short, outside, strict=True)
        )
    )
    return Beyond(
        allocated_bytes=allocated_bytes,
        reserved_low_bytes=reserved.low,
        reserved_bytes=reserved.estimate,
        reserved_high_bytes=reserved.high,
        device_low_bytes=held.low,
        device_bytes=held.estimate,
        device_high_bytes=held.high,
        assumptions=tuple(
            _assumptions(device, num_groups, all_to_all_peers, scarce=ample.estimate > room)
        ),
    )


def most_allocated(device: Device, *, num_groups: int, all_to_all_peers: int = 0) -> int:
    """Most bytes that may be allocated so that `beyond` stays within the device.

    Below zero if the process alone is too much.
    """
    if device.architecture == "cpu":
        return device.memory_bytes
    outside = _outside(device, num_groups, all_to_all_peers).estimate
    segments = (device.memory_bytes - outside) // SEGMENT_BYTES * SEGMENT_BYTES
    return ((segments + 1) * 1000 - 1) // (1000 + constants()["exhausted_per_mille"].estimate)


def _same(allocated_bytes: int) -> Beyond:
    """Take device and reserved bytes as the allocated ones: a CPU has neither."""
    return Beyond(
        allocated_bytes=allocated_bytes,
        reserved_low_bytes=allocated_bytes,
        reserved_bytes=allocated_bytes,
        reserved_high_bytes=allocated_bytes,
        device_low_bytes=allocated_bytes,
        device_bytes=allocated_bytes,
        device_high_bytes=allocated_bytes,
        assumptions=("CPU ranks: tensors only; the process and gloo's buffers come on top",),
    )


def _outside(device: Device, num_groups: int, all_to_all_peers: int) -> Band:
    """Bytes of the process that PyTorch's allocator does not know of."""
    context = constants()[_context_name(device)]
    group = constants()["communicator_mib"]
    peer = constants()["all_to_all_peer_mib"]
    return Band(
        *(
            (c + num_groups * g + all_to_all_peers * p) * MIB
            for c, g, p in zip(context, group, peer, strict=True)
        )
    )


def _context_name(device: Device) -> str:
    return "context_large_mib" if device.memory_bytes >= LARGE_DEVICE_BYTES else "context_small_mib"


def _grown(size: int, per_mille: Band) -> Band:
    """Add parts of a thousand, rounded up to whole segments."""
    return Band(*(round_up(size + size * part // 1000, SEGMENT_BYTES) for part in per_mille))


def _assumptions(
    device: Device, num_groups: int, all_to_all_peers: int, *, scarce: bool
) -> list[str]:
    """Say which constants were used, with their bands."""
    known = constants()
    kind = "exhausted_per_mille" if scarce else "fragmentation_per_mille"
    told = [
        f"reserved is {_percent(known[kind])} above allocated"
        + (" as memory is short and unused segments are returned" if scarce else ""),
        f"outside PyTorch's allocator: a context of {_gib(known[_context_name(device)])}"
        + (
            f" and {num_groups} communicators of {_gib(known['communicator_mib'])}"
            if num_groups
            else ""
        ),
    ]
    if all_to_all_peers:
        told.append(
            f"all-to-all with {all_to_all_peers} ranks of the node: "
            f"{_gib(known['all_to_all_peer_mib'])} each"
        )
    if device.architecture.startswith("cdna"):
        told.append("context and communicators of ROCm are taken as those of CUDA: not measured")
    return told


def _percent(band: Band) -> str:
    return _range(band, lambda part: f"{part / 10:.1f}") + " %"


def _gib(band: Band) -> str:
    return _range(band, lambda size: f"{size / 1024:.2f}") + " GiB"


def _range(band: Band, show: Callable[[int], str]) -> str:
    return f"{show(band.estimate)} ({show(band.low)} to {show(band.high)})"
