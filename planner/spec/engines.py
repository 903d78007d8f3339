"""Frameworks other than DeepSpeed, as far as a file can say how they run."""

from dataclasses import dataclass
from typing import Literal

from planner.spec.fields import Count

EngineName = Literal["deepspeed", "megatron", "fsdp", "ddp"]
"""Whose rules are planned; ddp stands for plain PyTorch on one device, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fsdp:
    """PyTorch's FSDP with full sharding: every block a unit, the rest the root unit."""

    version: Literal[1, 2] = 2
    """1: FullyShardedDataParallel; 2: fully_shard, whose forward pass gathers a block ahead."""
    mixed_precision: bool = True
    """Shards, their gradients and the optimizer's states are fp32, the passes run in
    `training.precision`; false: everything is of that precision."""
    reduce_in_fp32: bool = False
    """Gradients are widened before they are reduced (``reduce_dtype``), as torchtitan does."""
    reshard_after_forward: bool = True
    """false: a block stays whole from its forward to its backward pass (SHARD_GRAD_OP)."""
    replicas: Count = 1
    """Groups that hold the same shards: more than one is hybrid sharding."""
