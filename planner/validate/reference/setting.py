"""What the reference transformer's layers are built from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from planner.layout.tensor import TensorCut, local_shape
from planner.model.description import Model, Parameter, Placed
from planner.spec.deepspeed import DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Training

Shape = tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class TensorGroup:
    """The ranks that tensor parallelism cuts a layer over.

    It is also what `deepspeed.checkpointing.configure` asks, since DeepSpeed's own grid cannot
    answer: it has no ``get_tensor_model_parallel_group`` (runtime/pipe/topology.py:462-475 of
    0.19.8).
    """

    rank: int
    size: int
    group: Any = None
    """torch's process group, once it has been made."""

    def get_tensor_model_parallel_rank(self) -> int:
        """Its own place."""
        return self.rank

    def get_tensor_model_parallel_world_size(self) -> int:
        """How many there are."""
        return self.size

    def get_tensor_model_parallel_group(self) -> Any:
        """Those who share a tensor."""
        return self.group


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is the same for all layers of a rank."""

    model: Model
    training: Training
    layout: Layout
    dtype: torch.dtype
    cut: TensorCut
    tensor: TensorGroup
    deepspeed: DeepSpeed
    make_experts: "MakeExperts"

    def shape(self, placed: Placed, parameter: Parameter) -> Shape:
        """What this rank holds of a parameter that is not a routed expert."""
        attention = placed.layer.attention
        return local_shape(parameter, attention, self.cut, prefix=placed.prefix)


MakeExperts = Callable[[Placed, Setting], torch.nn.Module]
"""The seam to the experts: a module from hidden states (B, S, H) to hidden states (B, S, H).

`layers.Block` calls it where ``placed.layer.mlp`` is a `Moe` and registers the module under
`planner.model.modules.experts_folder` (``mlp``), so the module owns router, routed and shared
experts, under names relative to that. `experts.make_experts` is the one that
`build` passes; its twin on the paper machine is ``planner.activations.programs.reference_moe``:
``mixture(m: Machine, case: Case, hidden: Tensor) -> Tensor``.
"""
