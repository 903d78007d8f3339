"""Why ZeRO-3's terms are as large as they are.

Line numbers are of runtime/zero of DeepSpeed 0.19.8.
"""

from collections.abc import Iterator

from planner.engines.deepspeed.dtypes import FP32_BYTES, Sizes
from planner.engines.deepspeed.notes import Note
from planner.engines.deepspeed.state_notes import states_note
from planner.engines.deepspeed.strategy import Setup
from planner.engines.deepspeed.zero3_partition import Partitions
from planner.memory.terms import Term


def zero3_notes(setup: Setup, layout: Partitions, sizes: Sizes) -> Iterator[Note]:
    """One note for each term that can be alive in a stage-3 run."""
    zero = setup.deepspeed.zero_optimization
    numel = layout.numel
    kept = sum(layout.pieces[index].numel for index in layout.persistent)
    yield Note(
        Term.WEIGHTS,
        f"{sizes.model} B * {numel:,}: of every parameter ceil(n / {setup.layout.zero_degree})",
        "stage3.py:864-925; partition_parameters.py:1690-1696",
    )
    yield Note(
        Term.GATHERED_WEIGHTS,
        f"{sizes.model} B * whole parameters: {kept:,} persistent ones of at most "
        f"{zero.stage3_param_persistence_threshold:,}, the modules in use, up to "
        f"{zero.stage3_prefetch_bucket_size:,} ahead, and what is reused within "
        f"{zero.stage3_max_reuse_distance:,}",
        "partitioned_param_coordinator.py:452-476, 632-664; parameter_offload.py:317-329",
    )
    if sizes.model != FP32_BYTES:
        yield Note(Term.MASTER_WEIGHTS, f"4 B * {numel:,}, by sub-group", "stage3.py:1169-1172")
    yield states_note(setup, [group.numel for group in layout.sub_groups])
    yield Note(
        Term.OWNED_GRADIENTS,
        f"{sizes.accumulation} B * {numel:,}, from the initialisation on",
        "stage3.py:791-793",
    )
    yield Note(
        Term.BUCKETS,
        f"{sizes.communication} B * reduce_bucket_size {zero.reduce_bucket_size:,}, made once, "
        "never freed",
        "stage3.py:780-784",
    )
