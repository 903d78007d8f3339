"""A decoder block as transformers runs it, by how its norms and branches join.

Source: the DecoderLayer of each family's modeling file in transformers 5.23.
"""

from planner.activations.eager import Machine, Tensor, add, mul
from planner.activations.programs.case import Case
from planner.activations.programs.hf_attention import self_attention
from planner.activations.programs.hf_latent import latent_attention
from planner.activations.programs.hf_moe import mixture
from planner.activations.programs.modules import activate, normalise, project
from planner.activations.programs.shared import Shared
from planner.model.description import Mlp, Moe


def block(m: Machine, case: Case, hidden: Tensor, shared: Shared) -> Tensor:
    """``LlamaDecoderLayer.forward`` and its kin."""
    return pre_norm(m, case, hidden, shared)


def pre_norm(m: Machine, case: Case, hidden: Tensor, shared: Shared) -> Tensor:
    """x + f(norm(x)), twice."""
    residual = hidden
    hidden = normalise(m, case.norm, hidden, "input_layernorm")
    attend = self_attention if case.attention.latent is None else latent_attention
    hidden, _ = attend(m, case, hidden, shared)
    hidden = add(residual, hidden)
    residual = hidden
    hidden = normalise(m, case.norm, hidden, "post_attention_layernorm")
    hidden = feed_forward(m, case, hidden)
    return add(residual, hidden)


def feed_forward(m: Machine, case: Case, hidden: Tensor) -> Tensor:
    """The MLP, or the mixture in its place."""
    mlp = case.mlp
    if isinstance(mlp, Moe):
        return mixture(m, case, mlp, hidden)
    with m.part("mlp"):
        return gated_mlp(m, case, mlp, hidden)


def gated_mlp(m: Machine, case: Case, mlp: Mlp, hidden: Tensor) -> Tensor:
    """``LlamaMLP.forward``."""
    gate, up, down = (case.module("mlp", place) for place in range(3))
    product = mul(activate(mlp.activation, project(m, hidden, gate)), project(m, hidden, up))
    return project(m, product, down)
