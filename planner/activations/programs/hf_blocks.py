"""A decoder block as transformers runs it, by how its norms and branches join.

Source: the DecoderLayer of each family's modeling file in transformers 5.23.
"""

from planner.activations.eager import Machine, Tensor, add
from planner.activations.programs import hf_bert, hf_bloom, hf_residual
from planner.activations.programs.case import Case
from planner.activations.programs.hf_attention import self_attention
from planner.activations.programs.hf_latent import latent_attention
from planner.activations.programs.hf_plain import feed_forward
from planner.activations.programs.hf_residual import like_llama
from planner.activations.programs.modules import normalise
from planner.activations.programs.shared import Shared


def block(m: Machine, case: Case, hidden: Tensor, shared: Shared) -> Tensor:
    """``LlamaDecoderLayer.forward`` and its kin."""
    if case.family == "bert":
        return hf_bert.block(m, case, hidden, shared)
    if case.family == "bloom":
        return hf_bloom.block(m, case, hidden, shared, hf_residual.block_norms(case))
    if like_llama(case):
        return pre_norm(m, case, hidden, shared)
    return hf_residual.block(m, case, hidden, shared)


def pre_norm(m: Machine, case: Case, hidden: Tensor, shared: Shared) -> Tensor:
    """Computes x + f(norm(x)), twice."""
    residual = hidden
    hidden = normalise(m, case.norm, hidden, "input_layernorm")
    attend = self_attention if case.attention.latent is None else latent_attention
    hidden, _ = m.module("self_attn", lambda: attend(m, case, hidden, shared))
    hidden = add(residual, hidden)
    residual = hidden
    hidden = normalise(m, case.norm, hidden, "post_attention_layernorm")
    hidden = feed_forward(m, case, hidden)
    return add(residual, hidden)
