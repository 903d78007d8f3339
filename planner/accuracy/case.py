"""An entry as something that can be planned, or the reason why it cannot."""

from dataclasses import dataclass, field
from typing import Literal

from planner.errors import PlannerError
from planner.model.description import Model
from planner.spec.load import Spec
from planner.spec.megatron import Megatron

Where = int | Literal["last", "worst"]
"""Which pipeline stage was read."""

Engine = Literal["deepspeed", "megatron", "ddp", "fsdp"]
"""Whose rules are planned; ddp stands for one device, too."""


class UnsupportedError(PlannerError):
    """An entry that cannot be turned into a plan; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How FSDP ran."""

    in_fp32: bool = True
    """Mixed precision keeps shards, gradients and states in fp32."""
    reduced_in_fp32: bool = False
    reshard_after_forward: bool = True
    forward_prefetch: bool = False
    """Of the second FSDP."""
    states_only: bool = False
    """Plain replicas that share the optimizer's states."""
    replicas: int = 1
    """Groups that hold the same shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One entry, translated."""

    spec: Spec
    model: Model
    engine: Engine = "deepspeed"
    sharding: Sharding = field(default_factory=Sharding)
    """Of FSDP."""
    megatron: Megatron = field(default_factory=Megatron)
    """Switches of Megatron-Core, if that is what ran."""
    where: Where
    assumptions: tuple[str, ...]
    """What the entry leaves open, and what was taken instead."""
