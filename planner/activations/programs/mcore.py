"""Megatron-Core's layers outside of `megatron.block`: embedding, last norm, head and loss.

Sources: Megatron-LM core_v0.14, core/models/common/embeddings/language_model_embedding.py,
core/models/gpt/gpt_model.py, core/tensor_parallel/cross_entropy.py.
"""

from functools import partial

from planner.activations.eager import Machine, Tensor, add, begin, dropout, empty, finish, to
from planner.activations.eager.autograd import Node
from planner.activations.programs import megatron_kernels as kernels
from planner.activations.programs.case import Case
from planner.memory.terms import Term

Shape = tuple[int, ...]


def stem(m: Machine, case: Case, shape: Shape) -> Tensor:
    """Words, positions and dropout; ``shape`` is that of the hidden states that leave."""
    weights = [m.parameters[p.name] for p in case.layer.parameters if p.component == "embedding"]
    hidden = _looked_up(weights[0], shape)
    if case.layer.positions == "learned":
        hidden = add(hidden, _looked_up(weights[1], (1, *shape[1:])))
    return dropout(hidden, case.probability(case.layer.hidden_dropout))


def _looked_up(weight: Tensor, shape: Shape) -> Tensor:
    """An embedding whose gradient is dense, whatever adds it to the main gradient."""
    node = begin(_looked_up_back, weight)
    return finish(node, empty(weight.machine, shape, weight.dtype))


def _looked_up_back(node: Node, gradient: Tensor) -> tuple[Tensor | None]:
    expected = node.inputs[0]
    if expected is None:
        return (None,)
    return (empty(node.machine, expected[0], gradient.dtype),)


def head_and_loss(m: Machine, hidden: Tensor, weight: Tensor, *, tp: int, kernel: str) -> Tensor:
    """Logits of this rank's part of the vocabulary, and a loss per token.

    ``tp``: ranks over which the sequence is cut; 1: the hidden states are whole.
    """
    first = partial(kernels.gathering_linear, tp=tp) if tp > 1 else kernels.linear
    logits = m.book(first(hidden, [weight]), Term.LOGITS)
    del hidden
    with m.booked_as(Term.LOGITS):
        if kernel == "fused":
            return _fused_loss(logits)
        return _loss(logits, beside=kernel == "native")


def _loss(logits: Tensor, *, beside: bool) -> Tensor:
    """``_VocabParallelCrossEntropy``: an fp32 copy that becomes the softmax in place (21-130).

    ``beside``: the softmax is a tensor of its own.
    """
    node = begin(_loss_back, logits)
    wide = empty(logits.machine, logits.shape, "fp32")
    if beside:
        wide = empty(logits.machine, logits.shape, "fp32")
    losses = empty(logits.machine, logits.shape[:-1], "fp32")
    mask = empty(logits.machine, logits.shape[:-1], "bool")
    places = empty(logits.machine, logits.shape[:-1], "int64")
    if node is not None:
        node.save(wide, mask, places)
    return finish(node, losses)


def _loss_back(node: Node, gradient: Tensor) -> list[Tensor]:
    """The softmax becomes the gradient in place; autograd casts it to the logits' dtype."""
    wide, *_ = node.unpack()
    del gradient
    expected = node.inputs[0]
    assert expected is not None
    return [to(wide.alias(), expected[1])]


def _fused_loss(logits: Tensor) -> Tensor:
    """TransformerEngine's kernel writes the gradient over the logits (cross_entropy.py)."""
    node = begin(_fused_loss_back, logits)
    if node is not None:
        node.save(logits)
    return finish(node, empty(logits.machine, logits.shape[:-1], "fp32"))


def _fused_loss_back(node: Node, gradient: Tensor) -> list[Tensor]:
    (logits,) = node.unpack()
    del gradient
    return [logits.alias()]
