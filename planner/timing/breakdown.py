"""The answer: seconds by what they are spent on."""

from dataclasses import dataclass, fields

import numpy as np

from planner.timing.shapes import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """One optimizer step of the rank that takes longest; arrays over layouts.

    Fields that end in ``_seconds`` add up to the step. What runs while something longer runs is
    not in them: only what is left over of communication that overlaps with compute.
    """

    matmul_seconds: Seconds
    """Products with weights, forward and backward."""
    attention_seconds: Seconds
    """The core of attention: scores, and their product with the values."""
    traffic_seconds: Seconds
    """Element-wise operations, by the bytes that they move."""
    recompute_seconds: Seconds
    """All of the forward passes that run a second time, their communication included."""
    tensor_parallel_seconds: Seconds
    """All-reduces, or all-gathers and reduce-scatters, inside layers."""
    sequence_parallel_seconds: Seconds
    """Ulysses' all-to-alls."""
    expert_parallel_seconds: Seconds
    """Dispatch and combine of tokens."""
    launch_seconds: Seconds
    """Waiting for the host to launch kernels."""
    pipeline_seconds: Seconds
    """Messages between stages."""
    bubble_seconds: Seconds
    """Waiting for other stages."""
    weight_gather_seconds: Seconds
    """Gathers of partitioned weights that prefetching does not hide."""
    gradient_seconds: Seconds
    """Reduction of gradients that the backward pass does not hide."""
    optimizer_seconds: Seconds
    """Clipping and the update, and the gather of updated weights."""
    offload_seconds: Seconds
    """Transfers between device and host, and the update on the host."""
    model_flops: Seconds
    """A device's share of all: forward and backward as if nothing were recomputed."""
    hardware_flops: Seconds
    """The same with what is recomputed."""

    @property
    def seconds(self) -> Seconds:
        """The whole step."""
        named = (each.name for each in fields(self) if each.name.endswith("_seconds"))
        return np.sum([getattr(self, name) for name in named], axis=0)

    @property
    def hardware_flops_per_second(self) -> Seconds:
        """Of one device, as Megatron-LM's papers and logs state it."""
        return self.hardware_flops / self.seconds

    @property
    def model_flops_per_second(self) -> Seconds:
        """Of one device, without credit for recomputation."""
        return self.model_flops / self.seconds
