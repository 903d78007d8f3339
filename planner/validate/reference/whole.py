"""The whole model on one rank, for training without a pipeline."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from planner.validate.reference.layers import (
    Block,
    Head,
    LastNorm,
    LayerModule,
    LossOf,
    Stem,
)
from planner.validate.reference.leaves import folder
from planner.validate.reference.setting import Setting

KINDS: dict[str, type[LayerModule]] = {
    "stem": Stem,
    "block": Block,
    "norm": LastNorm,
    "head": Head,
}


class Output(NamedTuple):
    """What a training loop gets and holds."""

    loss: Tensor
    logits: Tensor


class Transformer(nn.Module):
    """All layers, registered under their full names in the description's order."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting
        self.loss_of = LossOf(setting)
        model = setting.model
        made = {id(placed): KINDS[placed.layer.kind](placed, setting)
                for placed in model.registered()}  # fmt: skip
        # A tuple, which registers nothing: names come from grafting.
        self.layers = tuple(made[id(placed)] for placed in model.placed())
        if model.tied:
            self.layers[-1].tie(self.layers[0].part("embedding"))
        for placed in model.registered():
            graft(self, placed.prefix, made[id(placed)])

    def forward(self, tokens: Tensor, labels: Tensor) -> Output:
        """Token ids and labels (B, S) to the loss and the logits."""
        hidden = tokens
        for layer in self.layers[:-1]:
            hidden = self.run(layer, hidden)
        logits = self.layers[-1](hidden)
        del hidden
        return Output(self.loss_of(logits, labels), logits)

    def run(self, layer: LayerModule, hidden: Tensor) -> Tensor:
        """A layer, as a checkpoint where training recomputes it."""
        if self.setting.training.recompute == "full" and isinstance(layer, Block):
            return checkpoint(layer, hidden, use_reentrant=False, preserve_rng_state=False)
        return layer(hidden)


def graft(root: nn.Module, prefix: str, layer: nn.Module) -> None:
    """Register all that a layer owns below the prefix of its names."""
    place = folder(root, prefix.rstrip("."))
    for name, child in layer.named_children():
        place.add_module(name, child)
    for name, parameter in layer.named_parameters(recurse=False):
        place.register_parameter(name, parameter)
