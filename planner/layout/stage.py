"""What one rank of one pipeline stage holds, before ZeRO."""

from dataclasses import dataclass
from typing import NamedTuple

from planner.model.description import Placed


class LocalParameter(NamedTuple):
    """A parameter after tensor and expert parallelism have cut it."""

    name: str
    numel: int
    """Elements on this rank, before ZeRO."""
    expert: bool
    """Partitioned by ZeRO over the expert-data-parallel group."""
    ndim: int
    """Of the whole tensor; 1 for biases and norms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalLayer:
    """A layer with its parameters as this stage's ranks hold them."""

    placed: Placed
    parameters: tuple[LocalParameter, ...]
    """Same order as the layer's own; a head that is tied to the embedding of the same stage has
    none, one that is tied across stages holds a copy of the embedding's weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One pipeline stage; without pipeline parallelism the whole model is stage 0 of 1."""

    index: int
    num_stages: int
    layers: tuple[LocalLayer, ...]

    @property
    def num_parameters(self) -> int:
        """Elements on one rank before ZeRO (P)."""
        return sum(p.numel for layer in self.layers for p in layer.parameters)
