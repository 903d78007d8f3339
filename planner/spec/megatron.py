"""Megatron-Core's own switches, as far as they move memory, under its arguments' names."""

from dataclasses import dataclass
from typing import Annotated, Literal

from planner.spec.fields import Bounds, Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Megatron:
    """What ``megatron/training/arguments.py`` of core_v0.14 calls them; defaults are its."""

    use_distributed_optimizer: bool = False
    accumulate_allreduce_grads_in_fp32: bool = True
    """Main gradients are fp32, as bf16 training makes them; False: of the model's dtype."""
    contiguous_gradients: bool = True
    """Main gradients lie in one buffer from the start; False: the local DDP of releases up to
    2021, which leaves gradients where autograd puts them."""
    gradient_accumulation_fusion: bool = True
    """Weight gradients are added to the main gradient by the product that makes them."""
    sequence_parallel: bool = False
    """Left out: what `training.sequence_parallel` says."""
    transformer_engine: bool = True
    """Whose linears run; with fusion they keep one dummy gradient per shape of a weight."""
    blocks_per_stage: tuple[Count, ...] = ()
    """Transformer layers of each pipeline rank; empty: as many on each."""
    virtual_stages: Count = 1
    """Chunks of layers per pipeline rank (interleaved schedule)."""
    expert_model_parallel_size: Count = 1
    """Ranks over which experts are spread; left out: `layout.ep`."""
    expert_tensor_parallel_size: Count = 1
    """Ranks over which one expert is cut; left out: `layout.tp`."""
    mtp_num_layers: Annotated[int, Bounds(least=0, most=64)] = 0
    """Multi-token prediction: blocks after the last, each with a projection and a loss."""
    loss: Literal["unfused", "fused", "native"] = "unfused"
    """fused: the logits' gradient is written over the 16-bit logits
    (``--cross-entropy-fusion-impl te``); native: compiled pieces, each of which makes its result
    anew, so that fp32 logits and exponentials coexist (core/fusions/fused_cross_entropy.py)."""
