"""The experts of a block: DeepSpeed's MoE layer with gated MLPs in it, shared experts beside it.

Registered names, order and sizes are those of ``planner.layout`` for ``expert_engine: moe``.
Its twin on the paper machine is ``planner.activations.programs.deepspeed_moe``.
"""

from dataclasses import asdict
from typing import Any

import torch
from deepspeed.moe.layer import MoE
from torch import Tensor, nn

from planner.model.description import Layer, Mlp, Moe
from planner.spec.deepspeed import MoeLayer
from planner.validate.reference.layers import activation


class Expert(nn.Module):
    """A gated MLP."""

    def __init__(self, hidden_size: int, facts: Mlp, dtype: torch.dtype) -> None:
        super().__init__()
        inner = facts.ffn_size
        self.gate_proj = nn.Linear(hidden_size, inner, bias=False, dtype=dtype)
        self.up_proj = nn.Linear(hidden_size, inner, bias=False, dtype=dtype)
        self.down_proj = nn.Linear(inner, hidden_size, bias=False, dtype=dtype)
        self.activation = activation(facts.activation)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) to (..., H)."""
        return self.down_proj(self.activation(self.gate_proj(hidden)) * self.up_proj(hidden))


def _without_graph(gate: nn.Module, given: Any, told: tuple[Any, ...]) -> tuple[Any, ...]:
    """The balance loss as a number: it is not trained here.

    ``MOELayer`` keeps it until its next pass, and with it a graph: where blocks are recomputed, all
    that the recomputed pass saved before the experts, which no backward pass comes to free.
    """
    del gate, given
    return told[0].detach(), *told[1:]


class DeepSpeedExperts(nn.Module):
    """In the place of a block's experts: router and routed ones in ``moe``, then the shared."""

    def __init__(
        self, layer: Layer, hidden_size: int, *, ep: int, rules: MoeLayer, dtype: torch.dtype
    ) -> None:
        super().__init__()
        facts = layer.mlp
        assert isinstance(facts, Moe)
        self.moe = MoE(
            hidden_size,
            Expert(hidden_size, facts.expert, dtype),
            num_experts=facts.num_experts,
            ep_size=ep,
            k=facts.experts_per_token,
            **asdict(rules),
        ).to(dtype)
        self.moe.deepspeed_moe.gate.register_forward_hook(_without_graph)
        self._add_shared(layer, facts, hidden_size, dtype)

    def _add_shared(self, layer: Layer, facts: Moe, hidden_size: int, dtype: torch.dtype) -> None:
        """Under the names of the inventory, which are relative to the layer."""
        own = dict.fromkeys(
            p.name.split(".")[1] for p in layer.parameters if p.component == "shared_experts"
        )
        for name in own:
            if name.endswith("gate"):
                self.add_module(name, nn.Linear(hidden_size, 1, bias=False, dtype=dtype))
            elif facts.shared is not None:
                self.add_module(name, Expert(hidden_size, facts.shared, dtype))
        experts = [name for name in own if not name.endswith("gate")]
        self.shared_name = experts[0] if experts else ""
        self.gate_name = next((name for name in own if name.endswith("gate")), "")

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, H) to (B, S, H)."""
        output = self.moe(hidden)[0]
        if not self.shared_name:
            return output
        shared = self.get_submodule(self.shared_name)(hidden)
        if self.gate_name:
            shared = torch.sigmoid(self.get_submodule(self.gate_name)(hidden)) * shared
        return output + shared
