"""What a program is told about the layer it runs."""

from dataclasses import dataclass
from functools import cached_property

from planner.activations.eager import Machine, Tensor, linear
from planner.model.description import Attention, Layer, Mlp, Moe, Norm
from planner.spec.deepspeed import DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Training


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layer under one training set-up. B, S and H are sizes on this rank."""

    layer: Layer
    family: str
    hidden_size: int
    vocab_size: int
    training: Training
    layout: Layout
    deepspeed: DeepSpeed
    rotary_size: int = 0
    """Elements of a head that blocks rotate; 0: none."""
    tied_head: bool = False
    """The head multiplies by the embedding's weight of the same rank."""
    keeps_stem: bool = False
    """The stem's output outlives the first block, until the last norm has run."""

    @property
    def batch(self) -> int:
        """B: sequences."""
        return self.training.micro_batch_size

    @cached_property
    def length(self) -> int:
        """S: tokens of a sequence on this rank outside attention."""
        return self.training.sequence_length // self.layout.sp

    @property
    def dtype(self) -> str:
        """Of weights and activations."""
        return self.training.precision

    @property
    def attention(self) -> Attention:
        """The block's attention."""
        assert self.layer.attention is not None
        return self.layer.attention

    @property
    def norm(self) -> Norm:
        """The block's norms, or the last norm."""
        assert self.layer.norm is not None
        return self.layer.norm

    @property
    def mlp(self) -> Mlp | Moe:
        """The block's feed-forward part."""
        assert self.layer.mlp is not None
        return self.layer.mlp

    @property
    def masked(self) -> bool:
        """A mask is made: eager attention adds one; sdpa masks by itself."""
        return self.training.attention == "eager"

    @property
    def mask_shape(self) -> tuple[int, int, int, int]:
        """Of the mask that is added to the scores."""
        length = self.training.sequence_length
        return (self.batch, 1, length, length)

    def probability(self, value: float) -> float:
        """A dropout probability as training applies it."""
        return value if self.training.dropout else 0.0


def project(m: Machine, tensor: Tensor, name: str) -> Tensor:
    """An ``nn.Linear``; with or without bias, as its parameters say."""
    weight = m.parameters[f"{name}.weight"]
    bias = m.parameters.get(f"{name}.bias")
    return m.module(name, lambda x: linear(x, weight, bias), tensor)
