"""Seconds of attention's core: scores of pairs of tokens, and the weighted sum of values."""

import numpy as np
from numpy.typing import NDArray

from planner.timing.matmul import ALIGNED, matmul_seconds
from planner.timing.products import Core
from planner.timing.shapes import Seconds, Setting

FUSED_BACKWARD = 2.5
"""Products of the backward pass over those of the forward pass, 5 for 2: the scores are computed
again (arXiv:2307.08691, section 4.1)."""
EAGER_BACKWARD = 2.0


def core_seconds(
    core: Core | None, sizes: NDArray[np.int64], setting: Setting, *, backward: bool
) -> Seconds:
    """Of micro-batches of ``sizes`` sequences; zero for a layer without attention."""
    if core is None:
        return np.zeros(len(sizes))
    if core.fused:
        return _fused(core, sizes, setting, backward=backward)
    times = EAGER_BACKWARD if backward else 1.0
    if core.head_size % ALIGNED or core.value_head_size % ALIGNED:
        # Operands that begin anywhere miss the matrix units.
        return times * sizes * core.flops_per_sequence / setting.rates.core_flops_per_second
    return times * _batched(core, sizes, setting)


def _fused(core: Core, sizes: NDArray[np.int64], setting: Setting, *, backward: bool) -> Seconds:
    flops = sizes * core.flops_per_sequence
    if backward:
        return FUSED_BACKWARD * flops / setting.rates.attention_backward_flops_per_second
    return flops / setting.rates.attention_flops_per_second


def _batched(core: Core, sizes: NDArray[np.int64], setting: Setting) -> Seconds:
    """Scores, (S, D) by (D, S), then the context, (S, S) by (S, D_v), for every head."""
    shapes = ((core.length, core.head_size), (core.value_head_size, core.length))
    scores, context = (
        matmul_seconds(
            core.length,
            columns,
            inner,
            groups=sizes * core.heads,
            rates=setting.rates,
        )
        for columns, inner in shapes
    )
    return scores + context
