"""BERT's block: each branch joins its residual and is normed in a module of its own.

Source, transformers 5.23: models/bert/modeling_bert.py, BertLayer (line 374), BertAttention (297),
BertSelfAttention (140), BertSelfOutput (282) and BertOutput (351).
"""

from planner.activations.eager import Machine, Tensor, add, contiguous, reshape
from planner.activations.programs.case import Case
from planner.activations.programs.hf_attention import heads
from planner.activations.programs.hf_scores import Scored, score
from planner.activations.programs.modules import activate, dropped, normalise, project
from planner.activations.programs.shared import Shared
from planner.model.description import Mlp


def block(m: Machine, case: Case, hidden: Tensor, shared: Shared) -> Tensor:
    """``BertLayer.forward``, which has a name for the attention's weights, too."""
    attended, weights = m.module("attention", lambda x: _attention(m, case, x, shared), hidden)
    with m.part("mlp"):
        raised = m.module("intermediate", lambda x: _raised(m, case, x), attended)
        output = _joined(m, case, "mlp", "output", (raised, attended))
    del weights
    return output


def _attention(m: Machine, case: Case, hidden: Tensor, shared: Shared) -> Scored:
    context, weights = m.module("attention.self", lambda x: _scored(m, case, x, shared), hidden)
    with m.part("attention.o"):
        output = _joined(m, case, "attention.o", "attention.output", (context, hidden))
    return output, weights


def _scored(m: Machine, case: Case, hidden: Tensor, shared: Shared) -> Scored:
    batch, length, _ = hidden.shape
    query, key, value = heads(m, case, hidden)
    output, weights = score(m, case, (query, key, value), shared)
    return contiguous(reshape(output, batch, length, -1)), weights


def _raised(m: Machine, case: Case, hidden: Tensor) -> Tensor:
    mlp = case.mlp
    assert isinstance(mlp, Mlp)
    hidden = project(m, hidden, case.module("mlp"))
    return activate(mlp.activation, hidden)


def _joined(
    m: Machine, case: Case, component: str, module: str, inputs: tuple[Tensor, Tensor]
) -> Tensor:
    """A branch's last product, dropped out, on its residual; then the norm."""
    place = 1 if component == "mlp" else 0

    def forward(branch: Tensor, residual: Tensor) -> Tensor:
        branch = project(m, branch, case.module(component, place))
        branch = dropped(m, case, branch)
        return normalise(m, case.norm, add(branch, residual), f"{module}.LayerNorm")

    return m.module(module, forward, *inputs)
