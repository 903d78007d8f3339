"""Sizes of elements, the same under every framework."""

from planner.spec.deepspeed import DType

FP32_BYTES = 4
TOKEN_BYTES = 8
"""Token ids and labels are int64."""
SIZES: dict[DType, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
