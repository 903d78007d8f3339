"""Stem, block, last norm and head: each takes hidden states (the stem token ids) and gives them on.

A layer is whole in itself: it makes its own positions and masks, so that nothing but hidden states
travels, between layers as between pipeline stages.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from planner.model.description import Mlp, Placed
from planner.model.modules import experts_folder, hidden_norms, matrices, owner
from planner.validate.reference.attention import SelfAttention
from planner.validate.reference.leaves import plant, tied_linear
from planner.validate.reference.parallel import cross_entropy_over_ranks, enter_branch
from planner.validate.reference.setting import Setting

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """One kernel; every approximation of GELU (gelu_new, gelu_pytorch_tanh, ...) is torch's own."""
    return ACTIVATIONS.get(name, functional.gelu)


class LayerModule(nn.Module):
    """A layer of the description with its parameters planted on it."""

    def __init__(self, placed: Placed, setting: Setting) -> None:
        super().__init__()
        self.placed = placed
        self.setting = setting
        plant(self, placed, setting)

    def part(self, component: str, place: int = 0) -> nn.Module:
        """The module that owns the layer's ``place``-th matrix of a component."""
        return self.get_submodule(owner(matrices(self.placed.layer, component)[place]))


class Stem(LayerModule):
    """Token embedding, positions, a norm."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S) to (B, S, H)."""
        layer = self.placed.layer
        hidden = self.part("embedding")(tokens)
        if layer.embedding_scale:
            hidden = hidden * self.setting.model.hidden_size**0.5
        if layer.positions == "learned":
            places = torch.arange(tokens.shape[1], device=tokens.device)
            hidden = hidden + self.part("embedding", 1)(places)
        if layer.embedding_norm:
            hidden = self.get_submodule(hidden_norms(self.placed.layer)[0])(hidden)
        return hidden


class Block(LayerModule):
    """Attention and MLP, joined with the residual as the description says."""

    def run_norm(self, hidden: Tensor, place: int) -> Tensor:
        """The block's own norms, in the order of use."""
        return self.get_submodule(hidden_norms(self.placed.layer)[place])(hidden)

    def run_attention(self, hidden: Tensor) -> Tensor:
        """The first branch."""
        facts = self.placed.layer.attention
        assert facts is not None
        # Made anew each time: a member would refer back, and keep a dropped block alive.
        attend = SelfAttention(self, facts, self.setting)
        return attend(enter_branch(hidden, self.setting.tensor))

    def run_mlp(self, hidden: Tensor) -> Tensor:
        """The second branch: experts, a gated MLP, or a plain one."""
        facts = self.placed.layer.mlp
        if not isinstance(facts, Mlp):
            return self.get_submodule(experts_folder(self.placed.layer))(hidden)
        hidden = enter_branch(hidden, self.setting.tensor)
        bend = activation(facts.activation)
        if not facts.gated:
            return self.part("mlp", 1)(bend(self.part("mlp")(hidden)))
        if facts.fused_gate_up:
            gate, up = self.part("mlp")(hidden).chunk(2, -1)
            return self.part("mlp", 1)(bend(gate) * up)
        product = bend(self.part("mlp")(hidden)) * self.part("mlp", 1)(hidden)
        return self.part("mlp", 2)(product)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, H) to (B, S, H)."""
        match self.placed.layer.residual:
            case "pre":
                hidden = hidden + self.run_attention(self.run_norm(hidden, 0))
                return hidden + self.run_mlp(self.run_norm(hidden, 1))
            case "post":
                hidden = self.run_norm(hidden + self.run_attention(hidden), 0)
                return self.run_norm(hidden + self.run_mlp(hidden), 1)
            case "sandwich":
                hidden = hidden + self.run_norm(self.run_attention(self.run_norm(hidden, 0)), 1)
                return hidden + self.run_norm(self.run_mlp(self.run_norm(hidden, 2)), 3)
            case "post_output":
                hidden = hidden + self.run_norm(self.run_attention(hidden), 0)
                return hidden + self.run_norm(self.run_mlp(hidden), 1)
            case "parallel_one_norm":
                normed = self.run_norm(hidden, 0)
                return hidden + self.run_attention(normed) + self.run_mlp(normed)
            case _:
                attended = self.run_attention(self.run_norm(hidden, 0))
                return hidden + attended + self.run_mlp(self.run_norm(hidden, 1))


class LastNorm(LayerModule):
    """The norm after the blocks."""

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, H) to (B, S, H)."""
        return self.get_submodule(hidden_norms(self.placed.layer)[0])(hidden)


class Head(LayerModule):
    """Hidden states to logits (B, S, V), or this rank's share of them."""

    def tie(self, embedding: nn.Module) -> None:
        """Multiply by an embedding's weight, which is registered as the head's own too."""
        self.add_module(TIED_HEAD, tied_linear(embedding))

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits in the training's dtype."""
        hidden = enter_branch(hidden, self.setting.tensor)
        own = matrices(self.placed.layer, "head")
        linear = self.part("head") if own else self.get_submodule(TIED_HEAD)
        return linear(hidden)


TIED_HEAD = "lm_head"


class LossOf:
    """Mean cross-entropy in fp32 of logits (B, S, V/t) against labels (B, S)."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """One number."""
        wide = logits.float().view(-1, logits.shape[-1])
        if self.setting.tensor.size > 1:
            return cross_entropy_over_ranks(wide, labels.view(-1), self.setting.tensor)
        return functional.cross_entropy(wide, labels.view(-1))
