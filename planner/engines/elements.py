"""Sizes of elements, the same under every framework."""

from planner.spec.deepspeed import DType

FP32_BYTES = 4
TOKEN_BYTES = 8
"""Token ids and labels are int64."""
SIZES: dict[DType, int] = {"fp32": 4, "fp16": 2, "bf16": 2}


def token_bytes(sp: int) -> int:
    """What a plain training loop gives the model for a token: its id, its label.

    Ulysses wants position ids from the caller, too (runtime/sequence_parallel/ulysses_sp.py:287 of
    DeepSpeed 0.19.8).
    """
    return (2 if sp == 1 else 3) * TOKEN_BYTES
