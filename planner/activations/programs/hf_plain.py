"""Feed-forward modules: gated, gated with one fused projection, and plain ones.

Sources, transformers 5.23: LlamaMLP, Phi3MLP (modeling_phi3.py:57), GPT2MLP (modeling_gpt2.py:238),
and the MLP of each other family's modeling file.
"""

from planner.activations.eager import Machine, Tensor, mul, split
from planner.activations.programs.case import Case
from planner.activations.programs.hf_moe import mixture
from planner.activations.programs.hf_oss import clamped_mixture
from planner.activations.programs.hf_projected import DROPS_INSIDE, linear_of
from planner.activations.programs.modules import activate, dropped, project
from planner.model.description import Mlp, Moe


def feed_forward(m: Machine, case: Case, hidden: Tensor) -> Tensor:
    """The MLP, or the mixture in its place."""
    mlp = case.mlp
    if isinstance(mlp, Moe):
        own = clamped_mixture if mlp.expert.clamped else mixture
        return m.module("mlp", lambda x: own(m, case, mlp, x), hidden)
    with m.part("mlp"):
        run = plain_mlp
        if mlp.gated:
            run = fused_mlp if mlp.fused_gate_up else gated_mlp
        return m.module("mlp", lambda x: run(m, case, mlp, x), hidden)


def gated_mlp(m: Machine, case: Case, mlp: Mlp, hidden: Tensor) -> Tensor:
    """``LlamaMLP.forward``; the first Qwen multiplies in the other order."""
    gate, up, down = (case.module("mlp", place) for place in range(3))
    if case.family == "qwen":
        raised, opened = project(m, hidden, gate), project(m, hidden, up)
        return project(m, mul(raised, activate(mlp.activation, opened)), down)
    product = mul(activate(mlp.activation, project(m, hidden, gate)), project(m, hidden, up))
    return project(m, product, down)


def fused_mlp(m: Machine, case: Case, mlp: Mlp, hidden: Tensor) -> Tensor:
    """``Phi3MLP.forward``: the halves of one product, as views."""
    both, down = (case.module("mlp", place) for place in range(2))
    up = project(m, hidden, both)
    half = up.shape[-1] // 2
    gate, up = split(up, (half, half), -1)
    up = mul(up, activate(mlp.activation, gate))
    return project(m, up, down)


def plain_mlp(m: Machine, case: Case, mlp: Mlp, hidden: Tensor) -> Tensor:
    """Up, activation, down; some drop out inside."""
    up, down = (case.module("mlp", place) for place in range(2))
    hidden = activate(mlp.activation, linear_of(m, case, hidden, up))
    hidden = linear_of(m, case, hidden, down)
    if case.family in DROPS_INSIDE:
        return dropped(m, case, hidden)
    return hidden
