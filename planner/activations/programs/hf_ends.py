"""What comes before and after the blocks: embeddings, the last norm, the head and the loss.

Sources, transformers 5.23: models/llama/modeling_llama.py (LlamaModel, LlamaForCausalLM),
masking_utils.py (eager masks), loss/loss_utils.py (ForCausalLMLoss).
"""

from dataclasses import dataclass

from planner.activations.eager import (
    Machine,
    Tensor,
    cat,
    embedding,
    empty,
    linear,
    log_softmax,
    nll_loss,
    scale,
    to,
    view,
)
from planner.activations.programs.case import Case
from planner.memory.terms import Term


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the model makes once for all its blocks."""

    forward: list[Tensor]
    """Alive until the last norm has run; with recomputation until the blocks' backward is over,
    since every checkpoint keeps its arguments."""
    backward: list[Tensor]
    """Saved by the blocks, so alive until their backward pass is over."""


def stem(m: Machine, case: Case) -> tuple[Tensor, Shared]:
    """The embedded tokens, and what the blocks share."""
    with m.part("embedding"):
        weight = m.parameters["weight"]
        hidden = m.module("", lambda: embedding(weight, (case.batch, case.length)))
    return hidden, shared_by_blocks(m, case)


def shared_by_blocks(m: Machine, case: Case) -> Shared:
    """Position ids, the mask and position embeddings.

    With pipeline stages nothing but hidden states goes from layer to layer: each block makes its
    own position embeddings.
    """
    shared = Shared(forward=[], backward=[])
    if case.layout.pp > 1:
        return shared
    with m.part("positions"):
        shared.forward.append(empty(m, (1, case.length), "int64"))
        if case.masked:
            visible = empty(m, (1, 1, case.length, case.length), "bool")
            shared.forward.append(empty(m, case.mask_shape, case.dtype))
            del visible
        if case.rotary_size:
            shared.backward.extend(position_embeddings(m, case))
    return shared


def leave_blocks(m: Machine, case: Case) -> None:
    """After the last norm: what was held for the forward pass only goes."""
    if case.keeps_stem:
        m.strike((case.batch, case.length, case.hidden_size), case.dtype)
    if case.layout.pp == 1 and case.training.recompute != "full":
        m.strike((1, case.length), "int64")
        if case.masked:
            m.strike(case.mask_shape, case.dtype)


def position_embeddings(m: Machine, case: Case) -> tuple[Tensor, Tensor]:
    """``LlamaRotaryEmbedding.forward``: computed in fp32, kept in the model's dtype."""
    frequencies = empty(m, (1, case.length, case.rotary_size // 2), "fp32")
    angles = cat([frequencies, frequencies], -1)
    cos = scale(scale(angles))
    sin = scale(scale(angles))
    return to(cos, case.dtype), to(sin, case.dtype)


def head_and_loss(m: Machine, case: Case, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the loss of the next token; both are held by the model's output."""
    weight = m.parameters["weight"]
    with m.part("head"):
        logits = m.module("", lambda x: linear(x, weight, m.parameters.get("bias")), hidden)
        m.book(logits, Term.LOGITS)
    with m.part("loss"), m.booked_as(Term.LOGITS):
        loss = causal_loss(m, case, logits)
    return logits, loss


def causal_loss(m: Machine, case: Case, logits: Tensor) -> Tensor:
    """``ForCausalLMLoss``: fp32 logits, their log-softmax, and one number."""
    logits = to(logits, "fp32")
    padded = empty(m, (case.batch, case.length + 1), "int64")
    shifted = empty(m, (case.batch * case.length,), "int64")
    logits = view(logits, -1, logits.shape[-1])
    loss = nll_loss(log_softmax(logits), shifted)
    del padded
    return loss
