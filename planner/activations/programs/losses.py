"""Losses that never hold the logits of all tokens at once.

fused: Liger's fused linear cross entropy. The forward pass computes the gradients too, a piece of
the tokens at a time; backward hands them on. Source: Liger-Kernel 0.6,
ops/fused_linear_cross_entropy.py, fused_linear_cross_entropy_forward.

chunked: the sequence in pieces, each a checkpoint of head and loss, so that backward computes a
piece's logits again.

in_place: all logits in fp32, and one kernel that writes their gradient over them. Source: Unsloth's
``Fast_CrossEntropyLoss`` in fms-acceleration, kernels/unsloth/cross_entropy_loss.py:195-250.
"""

from planner.activations.eager import (
    Machine,
    Tensor,
    add,
    begin,
    checkpoint,
    contiguous,
    empty,
    finish,
    linear,
    log_softmax,
    narrow,
    nll_loss,
    to,
    view,
)
from planner.activations.eager.autograd import Node
from planner.activations.programs.case import Case
from planner.memory.terms import Term
from planner.units import ceil_div


def fused_loss(m: Machine, hidden: Tensor, weight: Tensor) -> Tensor:
    """One number from hidden states (B, S, H) and the head's weight (V, H)."""
    node = begin(_handed_on, hidden, weight)
    tokens, size = hidden.shape[0] * hidden.shape[1], hidden.shape[2]
    labels = empty(m, (tokens,), "int64")
    to_hidden = empty(m, hidden.shape, hidden.dtype)
    trained = weight.edge is not None
    to_weight = m.book(empty(m, weight.shape, weight.dtype), Term.GRADIENTS) if trained else None
    losses = empty(m, (tokens,), "fp32")
    for rows in _pieces(tokens, size, weight.shape[0]):
        logits = empty(m, (rows, weight.shape[0]), hidden.dtype)
        m.book(logits, Term.LOGITS)
        product = empty(m, (rows, size), hidden.dtype)
        del logits, product
    if node is not None:
        node.save(to_hidden, to_weight)
    del to_hidden, to_weight, labels
    loss = empty(m, (), "fp32")
    del losses
    return finish(node, loss)


def _pieces(tokens: int, size: int, vocabulary: int) -> list[int]:
    """Tokens of each piece: so many that their logits are about as large as the hidden states."""
    piece = 1 << (ceil_div(tokens, ceil_div(vocabulary, size)) - 1).bit_length()
    return [min(piece, tokens - start) for start in range(0, tokens, piece)]


def _handed_on(node: Node, gradient: Tensor) -> list[Tensor | None]:
    """The loss's own gradient is 1, which Liger finds out and then multiplies by nothing."""
    del gradient
    to_hidden, to_weight = node.unpack()
    return [to_hidden, to_weight]


def in_place_loss(m: Machine, logits: Tensor) -> Tensor:
    """The mean over all tokens but the last of fp32 logits (B, S, V)."""
    batch, length, size = logits.shape
    shifted = contiguous(narrow(logits, 1, length - 1)) if batch > 1 else logits
    flat = view(shifted, -1, size)
    del shifted
    node = begin(_written_over, flat)
    losses = empty(m, (flat.shape[0],), "fp32")
    statistics = empty(m, (flat.shape[0],), "fp32")
    if node is not None:
        node.save(flat, statistics)
    del losses
    return finish(node, empty(m, (), "fp32"))


def _written_over(node: Node, gradient: Tensor) -> list[Tensor]:
    del gradient
    logits, _ = node.unpack()
    return [logits.alias()]


def chunked_loss(
    m: Machine, case: Case, hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """The sum of the losses of ``loss_chunks`` pieces of the sequence."""

    def piece_loss(piece: Tensor) -> Tensor:
        logits = m.book(linear(piece, weight, bias), Term.LOGITS)
        with m.booked_as(Term.LOGITS):
            flat = view(to(logits, "fp32"), -1, weight.shape[0])
            return nll_loss(log_softmax(flat), empty(m, (flat.shape[0],), "int64"))

    count = min(case.training.loss_chunks, hidden.shape[1])
    size = ceil_div(hidden.shape[1], count)
    total: Tensor | None = None
    for start in range(0, hidden.shape[1], size):
        loss = checkpoint(piece_loss, narrow(hidden, 1, min(size, hidden.shape[1] - start)))
        total = loss if total is None else add(total, loss)
    assert total is not None
    return total
