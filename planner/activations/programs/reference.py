"""The reference transformer on paper; twin of ``validate/reference/layers.py``.

Every layer makes its own positions and masks, so nothing is shared between layers. No dropout.
"""

from collections.abc import Callable

from planner.activations.eager import (
    Machine,
    Tensor,
    add,
    empty,
    linear,
    log_softmax,
    mul,
    nll_loss,
    scale,
    split,
    to,
    unary,
    unary_of_result,
    view,
)
from planner.activations.eager.pieces import look_up
from planner.activations.programs.case import Case
from planner.activations.programs.modules import normalise
from planner.activations.programs.reference_attention import self_attention
from planner.activations.programs.reference_parallel import (
    cross_entropy,
    embed,
    enter_branch,
    product,
)
from planner.memory.terms import Term
from planner.model.description import Mlp
from planner.model.modules import hidden_norms, matrices

SAVES_RESULT = {"relu", "tanh"}
TIED_HEAD = "lm_head"


def stem(m: Machine, case: Case) -> Tensor:
    """Token ids to hidden states."""
    tables = matrices(case.layer, "embedding")
    with m.part("embedding"):
        weight = m.parameters[tables[0].name]
        hidden = m.module(tables[0].name.rpartition(".")[0], lambda: embed(m, case, weight))
        if case.layer.embedding_scale:
            hidden = scale(hidden)
        if case.layer.positions == "learned":
            places = empty(m, (case.length,), "int64")
            hidden = add(hidden, _placed(m, tables[1].name, places))
        if case.layer.embedding_norm:
            hidden = normalise(m, case.norm, hidden, hidden_norms(case.layer)[0])
    return hidden


def _placed(m: Machine, name: str, places: Tensor) -> Tensor:
    return m.module(name.rpartition(".")[0], lambda at: look_up(m.parameters[name], at), places)


Mixture = Callable[[Machine, Case, Tensor], Tensor]
"""What runs in the place of an MLP that routes its tokens to experts."""


def block(m: Machine, case: Case, hidden: Tensor, *, mixture: Mixture) -> Tensor:
    """``Block.forward``."""

    def mlp(hidden: Tensor) -> Tensor:
        if isinstance(case.mlp, Mlp):
            return _mlp(m, case, case.mlp, hidden)
        return mixture(m, case, hidden)

    match case.layer.residual:
        case "pre":
            hidden = add(hidden, _attention(m, case, _normed(m, case, hidden, 0)))
            return add(hidden, mlp(_normed(m, case, hidden, 1)))
        case "post":
            hidden = _normed(m, case, add(hidden, _attention(m, case, hidden)), 0)
            return _normed(m, case, add(hidden, mlp(hidden)), 1)
        case "sandwich":
            branch = _attention(m, case, _normed(m, case, hidden, 0))
            hidden = add(hidden, _normed(m, case, branch, 1))
            branch = mlp(_normed(m, case, hidden, 2))
            return add(hidden, _normed(m, case, branch, 3))
        case "post_output":
            hidden = add(hidden, _normed(m, case, _attention(m, case, hidden), 0))
            return add(hidden, _normed(m, case, mlp(hidden), 1))
        case "parallel_one_norm":
            normed = _normed(m, case, hidden, 0)
            return add(add(hidden, _attention(m, case, normed)), mlp(normed))
        case _:
            attended = _attention(m, case, _normed(m, case, hidden, 0))
            return add(add(hidden, attended), mlp(_normed(m, case, hidden, 1)))


def _normed(m: Machine, case: Case, hidden: Tensor, place: int) -> Tensor:
    return normalise(m, case.norm, hidden, hidden_norms(case.layer)[place])


def _attention(m: Machine, case: Case, hidden: Tensor) -> Tensor:
    return self_attention(m, case, enter_branch(case, hidden))


def _mlp(m: Machine, case: Case, facts: Mlp, hidden: Tensor) -> Tensor:
    hidden = enter_branch(case, hidden)
    with m.part("mlp"):
        if not facts.gated:
            raised = _bent(facts, _product(m, case, hidden, 0))
            return _product(m, case, raised, 1)
        if facts.fused_gate_up:
            both = _product(m, case, hidden, 0)
            half = both.shape[-1] // 2
            gate, up = split(both, (half, half), -1)
            del both
            return _product(m, case, mul(_bent(facts, gate), up), 1)
        opened = mul(_bent(facts, _product(m, case, hidden, 0)), _product(m, case, hidden, 1))
        return _product(m, case, opened, 2)


def _product(m: Machine, case: Case, x: Tensor, place: int) -> Tensor:
    return product(m, case, x, matrices(case.layer, "mlp")[place])


def _bent(facts: Mlp, x: Tensor) -> Tensor:
    return unary_of_result(x) if facts.activation in SAVES_RESULT else unary(x)


def last_norm(m: Machine, case: Case, hidden: Tensor) -> Tensor:
    """``LastNorm.forward``."""
    return normalise(m, case.norm, hidden, hidden_norms(case.layer)[0])


def head_and_loss(m: Machine, case: Case, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in the training's dtype, and the loss of their fp32 copies."""
    hidden = enter_branch(case, hidden)
    with m.part("head"):
        logits = m.book(_logits(m, case, hidden), Term.LOGITS)
    with m.part("loss"), m.booked_as(Term.LOGITS):
        wide = view(to(logits, "fp32"), -1, logits.shape[-1])
        if case.layout.tp > 1:
            return logits, cross_entropy(m, wide)
        labels = m.uncounted((case.batch * case.length,), "int64")
        return logits, nll_loss(log_softmax(wide), labels)


def _logits(m: Machine, case: Case, hidden: Tensor) -> Tensor:
    own = matrices(case.layer, "head")
    if own:
        return product(m, case, hidden, own[0])
    weight = m.parameters[f"{TIED_HEAD}.weight"]
    return m.module(TIED_HEAD, lambda x: linear(x, weight), hidden)
