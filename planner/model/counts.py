"""Parameters by component, in all and active per token, and what they weigh in each precision."""

from collections import Counter
from dataclasses import dataclass
from typing import get_args

from planner.model.description import Component, Layer, Model, Moe
from planner.units import ceil_div

COMPONENTS: tuple[Component, ...] = get_args(Component)
BITS: dict[str, int] = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4}
"""Bits of one weight; fp16 weighs what bf16 does. Scales and zero points of int8 and int4 are not
counted: their number depends on the quantiser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Parameters of a model."""

    total: int
    """All trainable parameters; a tied head is counted once, as the embedding."""
    active: int
    """Of a token's pass: see `num_active`."""
    active_without_embedding: int
    """The same without the embedding tables of the stem, as some publishers count (gpt-oss)."""
    by_component: dict[Component, int]
    """What the model has, in the order of `Component`; sums to ``total``."""


def count(model: Model) -> Counts:
    """Count the parameters of a model."""
    by_component: Counter[Component] = Counter()
    for placed in model.placed():
        for parameter in placed.layer.parameters:
            by_component[parameter.component] += parameter.numel
    active = num_active(model)
    return Counts(
        total=model.num_parameters,
        active=active,
        active_without_embedding=active - by_component["embedding"],
        by_component={name: by_component[name] for name in COMPONENTS if by_component[name]},
    )


def num_active(model: Model) -> int:
    """Parameters that one token passes through.

    Counts everything, the embedding and the head included, except that of E routed experts only the
    K chosen ones count. DeepSeek-V3 has 37,552,282,624 this way (its publisher prints 37B); others
    leave embeddings out, so compare published figures with care.
    """
    return sum(_active(placed.layer, model.experts_per_token) for placed in model.placed())


def weight_bytes(parameters: int, precision: str) -> int:
    """Bytes of the weights alone; two int4 weights share a byte, the last one rounds up."""
    return ceil_div(parameters * BITS[precision], 8)


def _active(layer: Layer, experts_per_token: int | None) -> int:
    """Routed weights count by their share; without a known share they count whole."""
    chosen = layer.mlp.experts_per_token if isinstance(layer.mlp, Moe) else experts_per_token
    return sum(
        p.numel if chosen is None or not p.routed else p.numel // p.shape[0] * chosen
        for p in layer.parameters
    )
