"""Seconds of a step by the arithmetic alone: what ranks layouts until links are counted too."""

from functools import lru_cache

from planner.model.counts import num_active
from planner.model.description import Model
from planner.search.candidate import Candidate
from planner.spec.load import Spec

PASSES = {"none": 3, "selective": 3, "full": 4}
"""Forward passes that a step is worth: the backward pass is two of them."""


def step_seconds(spec: Spec, model: Model, candidate: Candidate) -> float:
    """Matrix products at the device's peak, stretched by the pipeline's bubble.

    ``2 P`` flops a token and forward pass (Kaplan et al. 2020, arXiv:2001.08361, section 2.1);
    ``(p - 1) / m`` of the time is lost with p stages and m micro-batches (arXiv:2104.04473,
    section 2.2.1).
    """
    layout, made = candidate.layout, candidate.applied(spec)
    tokens = step_tokens(spec, candidate)
    flops = 2 * _active(model) * tokens * PASSES[candidate.recompute]
    rate = spec.cluster.device.bf16_flops_per_second * layout.num_devices
    return flops / rate * (1 + (layout.pp - 1) / made.micro_steps)


def step_tokens(spec: Spec, candidate: Candidate) -> int:
    """Of one optimizer step over all devices."""
    replicas = candidate.micro_batch_size * candidate.layout.dp
    sequences = spec.training.global_batch_size or replicas
    return sequences * spec.training.sequence_length


@lru_cache(maxsize=16)
def _active(model: Model) -> int:
    return num_active(model)
