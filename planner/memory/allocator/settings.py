"""``PYTORCH_ALLOC_CONF``: what may be set on PyTorch's caching allocator, of what moves memory.

Source: PyTorch 2.13, c10/core/AllocatorConfig.h:15-24 and 338-356 (the defaults); its
AcceleratorAllocatorConfig::parseArgs, which a test runs beside `read_settings`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from planner.errors import SettingsError
from planner.units import MIB

INTERVALS = 16
"""Powers of two from 1 MiB to 64 GiB, for which sizes may be rounded up differently."""

NOT_OF_THE_DEVICE = frozenset(
    {
        "graph_capture_record_stream_reuse",
        "pinned_free_catch_all",
        "pinned_max_cached_size_mb",
        "pinned_max_round_threshold_mb",
        "pinned_num_register_threads",
        "pinned_reserve_segment_size_mb",
        "pinned_use_background_threads",
        "pinned_use_cuda_host_register",
        "release_lock_on_cudamalloc",
        "throw_on_cudamalloc_oom",
    }
)
"""Keys that are taken and change nothing here: the host's memory, locks, how a refusal is told."""

_ITEM = re.compile(r"(\w+):(\[[^\]]*\]|[^,\[\]]*)(?:,|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The allocator's settings; the defaults are PyTorch's."""

    expandable_segments: bool = False
    """Segments are ranges of addresses that grow by pages of 2 MiB or `large_segment_bytes`."""
    max_split_bytes: int | None = None
    """Blocks from this size on are not split, and smaller requests do not get them."""
    max_non_split_rounding_bytes: int = 20 * MIB
    """A request from `max_split_bytes` on gets a block that is larger by less than this.

    PyTorch up to 2.6 has no such key: there it is 20 MiB."""
    garbage_collection_threshold: float = 0.0
    """Part of the allowed memory above which cached segments that are old are returned; needs
    `per_process_memory_fraction`, or torch.cuda.set_per_process_memory_fraction."""
    roundup_power2_divisions: tuple[int, ...] = (0,) * INTERVALS
    """For each of `INTERVALS`, into how many steps the way to the next power of two is cut."""
    large_segment_bytes: int = 20 * MIB
    """What a request of more than 1 MiB and less than 10 MiB takes from the driver."""
    per_process_memory_fraction: float = 1.0
    """Of the device's memory; below one, more is refused before the driver is asked."""


DEFAULTS = Settings()


def read_settings(text: str) -> Settings:
    """Read what ``PYTORCH_ALLOC_CONF`` may hold.

    SettingsError for what PyTorch refuses, and for another backend than the native one.
    """
    compact = "".join(text.split())
    items = list(_ITEM.finditer(compact))
    ends = [0, *(item.end() for item in items)]
    if ends[-1] != len(compact) or any(a.end() != b.start() for a, b in pairwise(items)):
        raise SettingsError(f"{text!r}: write key:value,key:value, e.g. expandable_segments:True")
    changes: dict[str, Any] = {}
    for key, value in (item.groups() for item in items):
        changes |= _change(key, value)
    return replace(DEFAULTS, **changes)


def _change(key: str, value: str) -> dict[str, Any]:
    if key in NOT_OF_THE_DEVICE:
        return {}
    if key == "backend":
        _demand(value == "native", key, value, "only the native allocator is known")
        return {}
    known = _READERS.get(key)
    if known is None:
        choices = ", ".join([*_READERS, "backend"])
        raise SettingsError(f"{key}: no setting of PyTorch's allocator; choose from {choices}")
    name, read = known
    try:
        return {name: read(key, value)}
    except ValueError:
        raise SettingsError(f"{key}: {value!r} is no value that PyTorch takes") from None


def _demand(holds: bool, key: str, value: str, why: str) -> None:  # noqa: FBT001 - a condition
    if not holds:
        raise SettingsError(f"{key}: {value!r}: {why}")


def _truth(key: str, value: str) -> bool:
    _demand(value in {"True", "False"}, key, value, "write True or False")
    return value == "True"


def _megabytes(least: int) -> Callable[[str, str], int]:
    def read(key: str, value: str) -> int:
        _demand(int(value) >= least, key, value, f"at least {least}")
        return int(value) * MIB

    return read


def _part(*, whole: bool) -> Callable[[str, str], float]:
    def read(key: str, value: str) -> float:
        part = float(value)
        fits = 0 < part < 1 or (whole and part == 1)
        _demand(fits, key, value, "above 0, up to 1" if whole else "between 0 and 1")
        return part

    return read


def _divisions(key: str, value: str) -> tuple[int, ...]:
    """``4``, or ``[256:1,512:2,1024:4,>:8]``: MiB and the divisions from there on.

    The first also holds for all that is smaller; intervals that are not named stay at 0. Up to
    PyTorch 2.7 ``>`` also replaced the last interval that was named.
    """
    if not value.startswith("["):
        return (_power(key, value),) * INTERVALS
    found = [0] * INTERVALS
    last: int | None = None
    for pair in value[1:-1].split(","):
        start, _, text = pair.partition(":")
        divisions = 0 if text == "0" else _power(key, text)
        if start == ">":
            first, end = (last or 0) + 1, INTERVALS
        else:
            interval = min(_power(key, start).bit_length(), INTERVALS)
            first, end = 0 if last is None else interval - 1, interval
            last = interval - 1
        found[first:end] = [divisions] * (end - first)
    return tuple(found)


def _power(key: str, value: str) -> int:
    number = int(value)
    _demand(number > 0 and number & (number - 1) == 0, key, value, "a power of two")
    return number


_READERS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "expandable_segments": ("expandable_segments", _truth),
    "max_split_size_mb": ("max_split_bytes", _megabytes(20)),
    "max_non_split_rounding_mb": ("max_non_split_rounding_bytes", _megabytes(20)),
    "garbage_collection_threshold": ("garbage_collection_threshold", _part(whole=False)),
    "roundup_power2_divisions": ("roundup_power2_divisions", _divisions),
    "large_segment_size_mb": ("large_segment_bytes", _megabytes(11)),
    "per_process_memory_fraction": ("per_process_memory_fraction", _part(whole=True)),
}
