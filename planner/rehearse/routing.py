"""What routers would decide: where sizes depend on it, the file's ``expert_imbalance`` answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

from deepspeed.moe.sharded_moe import MOELayer

from planner.rehearse.answers import counting
from planner.validate.replaced import replaced


@contextmanager
def stated_routing(imbalance: float) -> Iterator[None]:
    """Inside, the fullest expert gets ``imbalance`` times the mean of the tokens.

    DeepSpeed's MoE layer asks for it where it drops no tokens (moe/sharded_moe.py:249, 369, 467 of
    0.19.8). transformers' own experts never ask: all their sizes follow from the number of tokens.
    """
    forward = MOELayer.forward

    def routed(layer: Any, *inputs: Any, **kwargs: Any) -> Any:
        tokens = inputs[0].shape[:-1].numel()
        mean = tokens * layer.gate.k / (layer.num_local_experts * layer.ep_size)
        with counting(min(tokens, ceil(mean * imbalance))):
            return forward(layer, *inputs, **kwargs)

    with replaced(MOELayer, forward=routed):
        yield
