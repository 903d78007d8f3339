"""The order of passes on one pipeline rank: 1F1B, and interleaved over virtual stages.

Source: Megatron-LM core_v0.14, core/pipeline_parallel/schedules.py:
``forward_backward_pipelining_without_interleaving`` and ``..._with_interleaving``
(``get_pp_rank_microbatches``, ``get_model_chunk_id``).
"""

from collections.abc import Iterator
from typing import NamedTuple


class PassOf(NamedTuple):
    """One pass through one chunk of the stage's layers."""

    forward: bool
    chunk: int


def passes_in_order(
    stage: int, num_stages: int, micro_batches: int, chunks: int, group: int = 0
) -> Iterator[PassOf]:
    """Warm-up, one forward and one backward by turns, the rest.

    ``group``: micro-batches that go through one chunk before the next; 0: as many as stages.
    """
    order = _chunks_in_order(micro_batches, chunks, group or num_stages)
    warm = min(len(order), warm_up(stage, num_stages, chunks, group or num_stages))
    for chunk in order[:warm]:
        yield PassOf(forward=True, chunk=chunk)
    for ahead, chunk in zip(order[warm:], order, strict=False):
        yield PassOf(forward=True, chunk=ahead)
        yield PassOf(forward=False, chunk=chunks - 1 - chunk)
    for chunk in order[len(order) - warm :]:
        yield PassOf(forward=False, chunk=chunks - 1 - chunk)


def sufficient_micro_batches(micro_batches: int, num_stages: int) -> int:
    """So many that all moments that differ occur, and the last group is as large as it is.

    Warm-up takes less than ``(v + 1) p`` passes through v chunks, so never 3 p micro-batches.
    """
    return min(micro_batches, 4 * num_stages + micro_batches % num_stages)


def warm_up(stage: int, num_stages: int, chunks: int, group: int) -> int:
    """Forward passes before the first backward pass of the steady phase."""
    if chunks == 1:
        return num_stages - stage - 1
    return (num_stages - stage - 1) * 2 + (chunks - 1) * group


def _chunks_in_order(micro_batches: int, chunks: int, group: int) -> list[int]:
    """The chunk of each pass: groups of micro-batches go through all chunks by turns."""
    return [
        chunk
        for start in range(0, micro_batches, group)
        for chunk in range(chunks)
        for _ in range(min(group, micro_batches - start))
    ]
