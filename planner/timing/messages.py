"""Seconds of what a layer sends in one pass, to ranks of its own tensor, sequence, expert group."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.engines.elements import SIZES
from planner.model.description import Layer, Moe
from planner.spec.layout import Layout
from planner.timing.collectives import all_reduce_seconds, all_to_all_seconds
from planner.timing.links import wires
from planner.timing.shapes import Seconds, Setting

SUMS = {"stem": 1, "block": 2, "norm": 0, "head": 1}
"""All-reduces of hidden states in a pass: of a block after each branch's last product, of their
gradients after its first; a cut embedding's once, a cut head's gradient once (arXiv:1909.08053,
section 3). Under sequence parallelism an all-gather and a reduce-scatter move as many bytes
(arXiv:2205.05198, section 4.2.2)."""


class Messages(NamedTuple):
    """Of one pass; a backward pass sends as much as a forward pass."""

    tensor_parallel: Seconds
    sequence_parallel: Seconds
    expert_parallel: Seconds


def message_seconds(
    layer: Layer, setting: Setting, layout: Layout, tokens: NDArray[np.int64]
) -> Messages:
    """For micro-batches of so many tokens on a rank."""
    element = SIZES[setting.training.precision]
    hidden = element * setting.model.hidden_size * tokens
    lanes = wires(setting.cluster, layout.tp, 1)
    heads = wires(setting.cluster, layout.sp, layout.tp)
    experts = wires(setting.cluster, layout.ep, layout.tp * layout.sp)
    sent = layer.mlp.experts_per_token if isinstance(layer.mlp, Moe) else 0
    exchanged = element * exchanged_elements(layer) * tokens / layout.tp
    return Messages(
        SUMS[layer.kind] * all_reduce_seconds(hidden, lanes),
        all_to_all_seconds(exchanged, heads),
        2 * all_to_all_seconds(sent * hidden, experts),
    )


def exchanged_elements(layer: Layer) -> int:
    """Elements of a token that Ulysses sends: query, key and value, then the context.

    Source: deepspeed/runtime/sequence_parallel/ulysses_sp.py:168-395, release 0.19.8.
    """
    facts = layer.attention
    if facts is None:
        return 0
    both = facts.head_size + facts.value_head_size
    return (facts.num_heads + facts.num_kv_heads) * both
