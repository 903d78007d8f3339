"""What pipelining adds: the bubble of a schedule, and messages between stages.

A micro-batch takes t_s in stage s, forward and backward. Under 1F1B the slowest stage is never
idle between its first and its last micro-batch, so that m of them take

    m max(t_s) + (sum of t_s over the other stages)

(arXiv:2104.04473, section 2.2.1, has it for equal stages: ``(p - 1 + m) t``; for unequal ones it
is close, since at the ends others work beside the slowest). With v chunks a rank
the first micro-batch passes the other ranks in pieces of 1 / v (section 2.2.2 there).
"""

import numpy as np

from planner.engines.elements import SIZES
from planner.timing.collectives import all_gather_seconds, send_seconds
from planner.timing.links import wires
from planner.timing.shapes import Integers, Seconds, Setting, Shapes


def bubble_seconds(every: Seconds, slowest: Seconds, virtual_stages: Integers) -> Seconds:
    """``(every - slowest) / v``; ``every``: a micro-batch's seconds in all stages together."""
    return (every - slowest) / np.asarray(virtual_stages)


def boundary_seconds(setting: Setting, shapes: Shapes) -> Seconds:
    """Of one micro-batch on one rank: hidden states on, gradients back, once for each chunk.

    Each tensor-parallel rank sends its share, which the receivers gather, where the engine cuts
    boundaries (`planner.engines.deepspeed.boundary`; arXiv:2104.04473, section 4.1).
    """
    tp, sp = np.asarray(shapes.tp), np.asarray(shapes.sp)
    tokens = np.asarray(shapes.micro_batch_size) * (setting.training.sequence_length // sp)
    whole = SIZES[setting.training.precision] * setting.model.hidden_size * tokens
    cut = setting.engine == "megatron" or setting.deepspeed.pipeline.pipe_partitioned
    stride = np.asarray(shapes.dp) * sp * tp
    along = wires(setting.cluster, shapes.pp, stride)
    one = send_seconds(whole / np.where(cut, tp, 1), along)
    if cut and not setting.training.sequence_parallel:
        one = one + all_gather_seconds(whole, wires(setting.cluster, tp, 1))
    return np.where(np.asarray(shapes.pp) > 1, 2 * np.asarray(shapes.virtual_stages) * one, 0.0)
