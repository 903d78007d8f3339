"""What a step adds once: gradients reduced, weights updated, gathered, or moved to the host.

P parameters on a rank before ZeRO, in groups of n ranks. All by release 0.19.8 of DeepSpeed:
stages 1 and 2 all-reduce buckets of gradients whole (runtime/zero/stage_1_and_2.py:2384) and
gather the updated weights; stage 3 gathers weights for the forward and for the backward pass of
every micro-batch and reduce-scatters their gradients.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from planner.engines.elements import FP32_BYTES, SIZES
from planner.spec.devices import link
from planner.timing import constants
from planner.timing.collectives import (
    all_gather_seconds,
    all_reduce_seconds,
    reduce_scatter_seconds,
)
from planner.timing.links import Wires, wires
from planner.timing.shapes import Flags, Seconds, Setting, Shapes

UPDATE_BYTES = {"adamw": 30, "adamw_8bit": 18, "lion": 22, "sgd": 22, "muon": 22}
"""Read and written for one parameter in one update with an fp32 master copy: gradient 4, master
copy 4 + 4, each moment of 4 bytes twice that (of 8 bits: 1 + 1), the 16-bit weight 2."""
CLIP_BYTES = 8
"""A gradient in fp32 is read for its norm and read again as it is scaled (or written)."""

WEIGHTS_PARTITIONED, GRADIENTS_PARTITIONED = 3, 2


class Held(NamedTuple):
    """Parameters on a rank before ZeRO, of the stage that has most."""

    dense: Seconds
    routed: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSeconds:
    """Of one step, arrays over layouts; what overlaps is left out."""

    weight_gather: Seconds
    gradient: Seconds
    optimizer: Seconds
    offload: Seconds


def state_seconds(
    setting: Setting, shapes: Shapes, held: Held, forward: Seconds, backward: Seconds
) -> StateSeconds:
    """``forward``, ``backward``: seconds of one micro-batch's passes, behind which to hide."""
    rings = _Rings.of(setting, shapes)
    partitioned = shapes.zero_stage == WEIGHTS_PARTITIONED
    whole = np.asarray(shapes.zero_stage) == 0
    gathers = rings.gather(held, SIZES[setting.training.precision])
    weight_gather = np.where(
        partitioned,
        shapes.micro_batches * (_left(gathers, forward) + _left(gathers, backward)),
        0.0,
    )
    share = np.where(np.asarray(shapes.zero_stage) >= 1, rings.shards, 1)
    if setting.engine == "megatron":
        share = rings.shards if setting.megatron.use_distributed_optimizer else 0 * share + 1
        whole = share == 1
    updated = np.where(whole | partitioned, 0.0, gathers)
    return StateSeconds(
        weight_gather=weight_gather,
        gradient=_gradient(setting, shapes, held, rings, backward)
        + _accumulate(setting, shapes, held),
        optimizer=_update(setting, held, share, shapes.offloads_optimizer) + updated,
        offload=_offload(setting, shapes, held, share),
    )


class _Rings(NamedTuple):
    """Groups over which dense parameters and experts are replicated."""

    dense: Wires
    routed: Wires

    @classmethod
    def of(cls, setting: Setting, shapes: Shapes) -> "_Rings":
        dp, tp, sp, ep = (np.asarray(d) for d in (shapes.dp, shapes.tp, shapes.sp, shapes.ep))
        return cls(
            wires(setting.cluster, dp * sp, tp),
            wires(setting.cluster, np.maximum(1, dp * sp // ep), tp * ep),
        )

    @property
    def shards(self) -> Seconds:
        return np.asarray(self.dense.ranks, dtype=np.float64)

    def gather(self, held: Held, element_bytes: int) -> Seconds:
        return all_gather_seconds(element_bytes * held.dense, self.dense) + all_gather_seconds(
            element_bytes * held.routed, self.routed
        )

    def all_reduce(self, held: Held, element_bytes: int) -> Seconds:
        return all_reduce_seconds(element_bytes * held.dense, self.dense) + all_reduce_seconds(
            element_bytes * held.routed, self.routed
        )

    def scatter(self, held: Held, element_bytes: int) -> Seconds:
        return reduce_scatter_seconds(
            element_bytes * held.dense, self.dense
        ) + reduce_scatter_seconds(element_bytes * held.routed, self.routed)


def _left(communication: Seconds, compute: Seconds) -> Seconds:
    """What is left of communication that runs beside compute."""
    return np.maximum(0.0, communication - compute)


def _gradient(
    setting: Setting, shapes: Shapes, held: Held, rings: _Rings, backward: Seconds
) -> Seconds:
    """Once a step, or once a micro-batch where gradients are partitioned."""
    if setting.engine == "megatron":
        element = FP32_BYTES if setting.megatron.accumulate_allreduce_grads_in_fp32 else 2
        sharded = setting.megatron.use_distributed_optimizer
        return rings.scatter(held, element) if sharded else rings.all_reduce(held, element)
    zero = setting.deepspeed.zero_optimization
    told = setting.deepspeed.communication_data_type or setting.training.precision
    stage = np.asarray(shapes.zero_stage)
    partitioned = stage == WEIGHTS_PARTITIONED
    each = np.where(
        partitioned, rings.scatter(held, SIZES[told]), rings.all_reduce(held, SIZES[told])
    )
    overlaps = partitioned if zero.overlap_comm is None else zero.overlap_comm
    times = np.where(stage >= GRADIENTS_PARTITIONED, shapes.micro_batches, 1)
    return times * np.where(overlaps, _left(each, backward), each)


def _accumulate(setting: Setting, shapes: Shapes, held: Held) -> Seconds:
    """Every micro-batch but the first is added: its gradient read, the sum read and written."""
    told = setting.deepspeed.grad_accum_dtype or setting.training.precision
    in_fp32 = setting.engine == "megatron" and setting.megatron.accumulate_allreduce_grads_in_fp32
    kept = FP32_BYTES if in_fp32 else SIZES[told]
    moved = (SIZES[setting.training.precision] + 2 * kept) * (held.dense + held.routed)
    rate = constants.memory_bytes_per_second(setting.cluster.device)
    return (np.asarray(shapes.micro_batches) - 1) * moved / rate


def _update(setting: Setting, held: Held, share: Seconds, offloaded: Flags) -> Seconds:
    """On the device, at the speed of its memory; none where the host does it."""
    local = (held.dense + held.routed) / share
    moved = local * (UPDATE_BYTES[setting.training.optimizer] + CLIP_BYTES)
    on_device = moved / constants.memory_bytes_per_second(setting.cluster.device)
    return np.where(offloaded, 0.0, on_device)


def _offload(setting: Setting, shapes: Shapes, held: Held, share: Seconds) -> Seconds:
    """Optimizer: gradients down, weights up, the update on the host's cores that ranks share.

    Parameters: every rank's shard goes up for each of a micro-batch's two passes.
    """
    rate = constants.link_bytes_per_second(link(setting.cluster.device.host_link))
    element = SIZES[setting.training.precision]
    local = (held.dense + held.routed) / share
    updates = constants.constant("host_updates_per_second") / setting.cluster.devices_per_node
    step = local / updates + 2 * element * local / rate
    passes = 2 * shapes.micro_batches * element * local / rate
    return np.where(shapes.offloads_optimizer, step, 0.0) + np.where(
        shapes.offloads_parameters, passes, 0.0
    )
