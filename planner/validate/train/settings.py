"""DeepSpeed's configuration of a planned training."""

from typing import Any

from planner.engines.deepspeed.config import config
from planner.spec.load import Spec

DTYPE_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def settings(spec: Spec, *, hidden_size: int) -> dict[str, Any]:
    """What the planner writes, and what a client's own optimizer needs.

    ``zero_force_ds_cpu_optimizer: false``: with offload DeepSpeed would insist on its own Adam.
    ``steps_per_print``: nothing is printed in a run of a few steps.
    """
    written = config(
        training=spec.training,
        layout=spec.fixed_layout,
        deepspeed=spec.deepspeed_for(hidden_size),
        micro_steps=spec.micro_steps,
    )
    return written | {
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000,
    }


def dtype_of(spec: Spec) -> Any:
    """Torch's dtype of the model."""
    import torch

    return getattr(torch, DTYPE_NAMES[spec.training.precision])
