"""What comes before and after the blocks: embeddings, the head and the loss.

Sources, transformers 5.23: models/llama/modeling_llama.py (LlamaModel, LlamaForCausalLM),
loss/loss_utils.py (ForCausalLMLoss).
"""

from planner.activations.eager import (
    Machine,
    Tensor,
    empty,
    gather_last,
    log_softmax,
    nll_loss,
    scale,
    to,
    unary_of_result,
    view,
)
from planner.activations.programs import megatron_kernels as kernels
from planner.activations.programs.autotp_ends import vocabulary_loss
from planner.activations.programs.case import Case
from planner.activations.programs.held import leave_blocks
from planner.activations.programs.hf_stems import embedded, masked_loss, transformed
from planner.activations.programs.losses import chunked_loss, fused_loss, in_place_loss
from planner.activations.programs.modules import cut_linear
from planner.activations.programs.shared import Shared, make_shared
from planner.memory.terms import Term


def stem(m: Machine, case: Case) -> tuple[Tensor, Shared]:
    """The embedded tokens, and what the blocks share."""
    hidden = embedded(m, case)
    if case.training.sequence_parallel:
        hidden = kernels.scattered(hidden, tp=case.layout.tp)
    return hidden, make_shared(m, case)


HEAD = "lm_head"
"""Name of the head's weight where the layer does not register it itself."""


def head_and_loss(m: Machine, case: Case, hidden: Tensor) -> tuple[Tensor | None, Tensor]:
    """Logits, if all are ever there, and the loss; both are held by the model's output."""
    name = HEAD if f"{HEAD}.weight" in m.parameters else case.module("head")
    weight, bias = m.parameters[f"{name}.weight"], m.get(name, "bias")
    if case.layer.head_transform:
        # BERT registers its decoder's bias on the module around it.
        name, bias = "", m.get("", "bias")
    with m.part("head"):
        hidden = transformed(m, case, hidden)
    if case.block.residual == "post":
        leave_blocks(m, case)
        hidden = m.close_model(hidden)
    if case.training.loss == "fused":
        with m.part("loss"):
            return None, m.module(name, lambda x: fused_loss(m, x, weight), hidden)
    if case.training.loss == "chunked":
        with m.part("loss"):
            loss = m.module(name, lambda x: chunked_loss(m, case, x, weight, bias), hidden)
        return None, loss
    with m.part("head"):
        logits = m.module(name, lambda x: _gathered(m, case, name, x, weight, bias), hidden)
        if case.layer.logit_softcap:
            logits = scale(logits)
            logits = unary_of_result(logits)
            logits = scale(logits)
        m.book(logits, Term.LOGITS)
    if case.training.loss == "in_place":
        logits = m.book(to(logits, "fp32"), Term.LOGITS)
    with m.part("loss"), m.booked_as(Term.LOGITS):
        return logits, _loss(m, case, logits)


def _loss(m: Machine, case: Case, logits: Tensor) -> Tensor:
    """From all logits to one number."""
    if case.training.loss == "in_place":
        return in_place_loss(m, logits)
    if case.layer.head_transform:
        return masked_loss(case, logits)
    if logits.shape[-1] != case.vocab_size:
        return vocabulary_loss(m, case, logits)
    return causal_loss(m, case, logits)


def _gathered(
    m: Machine, case: Case, name: str, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """The head's linear; where AutoTP has cut it, all ranks gather all logits."""
    if case.training.sequence_parallel:
        biases = [] if bias is None else [bias]
        return kernels.gathering_linear(x, [weight], biases, tp=case.layout.tp)
    cut = m.cuts.get(name)
    logits = cut_linear(cut, x, weight, bias)
    return gather_last(logits, case.layout.tp) if _gathers(m, case, name) else logits


def _gathers(m: Machine, case: Case, name: str) -> bool:
    """A head that is tied to a cut embedding leaves the logits cut."""
    return name in m.cuts and not case.tied_head


def causal_loss(m: Machine, case: Case, logits: Tensor) -> Tensor:
    """``ForCausalLMLoss``: fp32 logits, their log-softmax, and one number."""
    logits = to(logits, "fp32")
    padded = empty(m, (case.batch, case.length + 1), "int64")
    shifted = empty(m, (case.batch * case.length,), "int64")
    logits = view(logits, -1, logits.shape[-1])
    loss = nll_loss(log_softmax(logits), shifted)
    del padded
    return loss
