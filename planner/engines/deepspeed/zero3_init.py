"""From the model to ZeRO-3's engine at rest.

Line numbers are of stage3.py in runtime/zero of DeepSpeed 0.19.8 unless another file is named.
"""

from planner.engines.deepspeed.dtypes import FP32_BYTES, Sizes
from planner.engines.deepspeed.zero3_partition import Partitions
from planner.memory.terms import Term
from planner.memory.timeline import Timeline

OVERFLOW_FLAG_BYTES = 1
"""``inf_or_nan_tracker``, a tensor of one bool (335)."""


def partition_model(
    timeline: Timeline, layout: Partitions, sizes: Sizes, *, zero_init: bool
) -> None:
    """Whole parameters become partitions, one parameter after the other.

    With ``zero.Init`` a parameter is whole only while its module is made; without, the whole
    model is there first (partition_parameters.py:1200-1215).
    """
    whole = sum(piece.numel for piece in layout.pieces) * sizes.model
    if not zero_init:
        timeline.add(Term.WEIGHTS, whole)
    for piece in layout.pieces:
        if zero_init:
            timeline.add(Term.WEIGHTS, piece.numel * sizes.model)
        timeline.add(Term.WEIGHTS, piece.partition_numel * sizes.model)
        timeline.add(Term.WEIGHTS, -piece.numel * sizes.model)


def make_master_weights(timeline: Timeline, layout: Partitions, sizes: Sizes) -> None:
    """fp32 sub-groups: converted, then cloned (1169-1172).

    The name of the converted copy holds it until the next one is there; the last one goes with the
    function. An fp32 model needs no conversion, but is cloned too: the branch that would spare it
    compares a ``torch.device`` with a name, which are never equal (1162-1163).
    """
    before = 0
    for group in layout.sub_groups:
        size = group.numel * FP32_BYTES
        converted = 0 if sizes.model == FP32_BYTES else size
        timeline.add(Term.INIT_COPIES, converted)
        timeline.add(Term.INIT_COPIES, -before)
        timeline.add(Term.MASTER_WEIGHTS, size)
        before = converted
    timeline.add(Term.INIT_COPIES, -before)


def make_buffers(
    timeline: Timeline, layout: Partitions, sizes: Sizes, *, bucket_numel: int
) -> None:
    """A gradient that is dropped again, the bucket, the partitions of the gradients.

    Source: 1304-1306 and 1366-1368; 780-784; 791-793; 335.
    """
    timeline.spike(Term.INIT_COPIES, layout.largest_sub_group_numel * FP32_BYTES)
    timeline.add(Term.BUCKETS, bucket_numel * sizes.communication)
    timeline.add(Term.OWNED_GRADIENTS, layout.numel * sizes.accumulation + OVERFLOW_FLAG_BYTES)


def register_hooks(timeline: Timeline, layout: Partitions, sizes: Sizes) -> None:
    """Every parameter is gathered once, to hang a hook on it (1501-1531)."""
    largest = max((p.padded_numel for p in layout.pieces if p.degree > 1), default=0)
    timeline.spike(Term.INIT_COPIES, largest * sizes.model)
