"""Which layers a pipeline stage gets: DeepSpeed's partition methods, re-implemented.

A `PipelineModule` divides a list of layers. The list assumed here is one entry for the stem
(embeddings), one for each block, one for the last norm and one for the head, in that order; a
tied embedding is a ``TiedLayerSpec`` and counts like any other layer (runtime/pipe/module.py:303).
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

from planner.errors import LayoutError


def partition_layers(
    names: Sequence[str], numels: Sequence[int], method: str, num_stages: int
) -> tuple[range, ...]:
    """The layers of each stage, as ``PipelineModule._partition_layers`` (module.py:396) chooses.

    Args:
        names: class name of each layer, which ``type:REGEX`` searches, ignoring case.
        numels: trainable parameters of each layer, before ZeRO.
        method: ``parameters``, ``uniform`` or ``type:REGEX``.
        num_stages: stages; a stage may stay empty.

    Raises:
        LayoutError: an unknown method, a pattern that is malformed or matches no layer.

    """
    kind = method.lower()
    if kind == "uniform":
        bounds = partition_uniform(len(names), num_stages)
    elif kind == "parameters":
        bounds = partition_balanced(tuple(numels), num_stages)
    elif kind.startswith("type:"):
        bounds = partition_balanced(_matches(names, kind.split(":")[1]), num_stages)
    else:
        raise LayoutError(
            f"deepspeed.pipeline.partition_method: DeepSpeed knows no method {method!r} "
            "(deepspeed/runtime/pipe/module.py:421); "
            "choose parameters, uniform or type:REGEX"
        )
    return tuple(range(start, stop) for start, stop in pairwise(bounds))


def partition_uniform(num_items: int, num_parts: int) -> tuple[int, ...]:
    """Bounds of parts of equal count; the first parts take the rest (runtime/utils.py:606)."""
    if num_items <= num_parts:
        return tuple(min(part, num_items) for part in range(num_parts + 1))
    size, rest = divmod(num_items, num_parts)
    return tuple(part * size + min(part, rest) for part in range(num_parts + 1))


class _Cut(NamedTuple):
    """The best partition of a prefix that was found."""

    heaviest: int
    lightest: int
    place: int
    """Where its last part begins."""


@lru_cache(maxsize=256)
def partition_balanced(weights: tuple[int, ...], num_parts: int) -> tuple[int, ...]:
    """Bounds of parts whose heaviest and lightest differ least (runtime/utils.py:627).

    DeepSpeed extends the best partition of a prefix by one part and keeps, of equal ones, that
    with the latest cut; it remembers one partition per prefix and so may miss the optimum.
    """
    num_items = len(weights)
    if num_items <= num_parts:
        return partition_uniform(num_items, num_parts)
    sums = [0, *accumulate(weights)]
    parts = [{end: _Cut(sums[end], sums[end], 0) for end in range(1, num_items + 1)}]
    for part in range(1, num_parts):
        # No part is empty, and some items are left for each of the parts after it.
        ends = range(part + 1, num_items - num_parts + part + 2)
        parts.append({end: _best_cut(parts[-1], sums, part, end) for end in ends})
    bounds = [num_items]
    for cuts in reversed(parts):
        bounds.append(cuts[bounds[-1]].place)
    return tuple(reversed(bounds))


def _best_cut(before: dict[int, _Cut], sums: Sequence[int], first: int, end: int) -> _Cut:
    """Add one part to the partitions ``before`` of prefixes; the latest cut of equal ones."""
    best, least = None, sums[-1] + 1
    for place in range(end - 1, first - 1, -1):
        heaviest, lightest, _ = before[place]
        last = sums[end] - sums[place]
        most, fewest = max(heaviest, last), min(lightest, last)
        if most - fewest < least:
            best, least = _Cut(most, fewest, place), most - fewest
    assert best is not None
    return best


def _matches(names: Sequence[str], pattern: str) -> tuple[int, ...]:
    """1 for each layer whose class name the pattern is found in, else 0."""
    try:
        weights = tuple(int(bool(re.search(pattern, name, re.IGNORECASE))) for name in names)
    except re.error as error:
        raise LayoutError(
            f"deepspeed.pipeline.partition_method: type:{pattern} is not a regular expression "
            f"({error}); write e.g. type:decoderlayer"
        ) from None
    if not any(weights):
        raise LayoutError(
            f"deepspeed.pipeline.partition_method: type:{pattern} matches none of the layers "
            f"{', '.join(dict.fromkeys(names))} (deepspeed/runtime/pipe/module.py:340); "
            "name one of them"
        )
    return weights
