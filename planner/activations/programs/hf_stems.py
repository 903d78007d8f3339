"""Stems with learned positions, norms and token types; heads with a transform or a projection.

Sources, transformers 5.23: GPT2Model (modeling_gpt2.py:512), OPTDecoder (modeling_opt.py:321),
BertEmbeddings (modeling_bert.py:68), BloomModel (modeling_bloom.py:448), GPTNeoXModel
(modeling_gpt_neox.py:312); BertLMPredictionHead (modeling_bert.py:476-495), Gemma2ForCausalLM
(modeling_gemma2.py:475).
"""

from planner.activations.eager import (
    Machine,
    Tensor,
    add,
    dropout,
    embedding,
    empty,
    expand,
    log_softmax,
    nll_loss,
    scale,
    view,
)
from planner.activations.eager.pieces import look_up
from planner.activations.programs.autotp_ends import vocabulary_embedding
from planner.activations.programs.case import Case
from planner.activations.programs.held import LEAVES_WITH_NAME, NO_DROPOUT
from planner.activations.programs.modules import activate, dropped, normalise, project
from planner.model.description import Mlp


def embedded(m: Machine, case: Case) -> Tensor:
    """From token ids to the blocks' input."""
    name = case.module("embedding")
    weight = m.parameters[f"{name}.weight"]
    shape = (case.batch, case.length)
    with m.part("embedding"):
        hidden = m.module(name, lambda: _tokens(m, case, weight, shape))
        if case.layer.token_types:
            hidden = _typed_and_placed(m, case, hidden)
        elif case.layer.positions == "learned":
            hidden = _placed(m, case, hidden)
        elif case.layer.embedding_norm:
            hidden = _normed(m, case, hidden)
        else:
            hidden = _dropped_stem(m, case, hidden)
    return hidden


def _tokens(m: Machine, case: Case, weight: Tensor, shape: tuple[int, int]) -> Tensor:
    """The lookup; Gemma's module multiplies its result."""
    if case.module("embedding") in m.cuts:
        hidden = vocabulary_embedding(m, case, weight)
    else:
        hidden = embedding(weight, shape)
    return scale(hidden) if case.layer.embedding_scale else hidden


def _dropped_stem(m: Machine, case: Case, inputs: Tensor) -> Tensor:
    if case.family in NO_DROPOUT:
        return inputs
    hidden = dropped(m, case, inputs)
    if hidden is not inputs and case.family not in LEAVES_WITH_NAME:
        hold(m, case, inputs)
    return hidden


def hold(m: Machine, case: Case, *tensors: Tensor) -> None:
    """The model's forward keeps these names to its end, where the last norm's tape frees them."""
    if case.layout.pp == 1:
        for tensor in tensors:
            m.disown(tensor)


def _normed(m: Machine, case: Case, inputs: Tensor) -> Tensor:
    """Bloom."""
    name = next(p.name.rpartition(".")[0] for p in case.layer.parameters if p.component == "norm")
    return normalise(m, case.norm, inputs, name)


def _placed(m: Machine, case: Case, inputs: Tensor) -> Tensor:
    """GPT-2 and OPT: one vector for each position."""
    if case.family == "opt":
        hold(m, case, empty(m, (case.batch, case.length), "fp32"))
    name = case.module("embedding", 1)
    table = m.parameters[f"{name}.weight"]
    rows = case.batch if case.family == "opt" else 1
    ids = empty(m, (rows, case.length), "int64")
    places = m.module(name, lambda: look_up(table, ids))
    if case.layer.embedding_size is not None:
        inputs = project(m, inputs, case.module("embedding", 2))
    hidden = add(inputs, places)
    hold(m, case, inputs, places)
    return dropped(m, case, hidden)


def _typed_and_placed(m: Machine, case: Case, hidden: Tensor) -> Tensor:
    """``BertEmbeddings.forward``."""
    names = [case.module("embedding", place) for place in (1, 2)]
    positions, types = (m.parameters[f"{name}.weight"] for name in names)
    type_ids = empty(m, (1, case.length), "int64")
    type_ids = expand(type_ids, case.batch, case.length)
    kinds = m.module(names[1], lambda: look_up(types, type_ids))
    total = add(hidden, kinds)
    places = m.module(names[0], lambda: embedding(positions, (1, case.length)))
    total = add(total, places)
    total = normalise(m, case.norm, total, "LayerNorm")
    return dropout(total, case.probability(case.layer.hidden_dropout))


def transformed(m: Machine, case: Case, hidden: Tensor) -> Tensor:
    """What comes before the product with the vocabulary."""
    if case.layer.head_transform:
        mlp = case.block.mlp
        assert isinstance(mlp, Mlp)
        hidden = project(m, hidden, "transform.dense")
        hidden = activate(mlp.activation, hidden)
        return normalise(m, case.norm, hidden, "transform.LayerNorm")
    if case.layer.embedding_size is not None:
        return project(m, hidden, case.module("head"))
    return hidden


def masked_loss(case: Case, logits: Tensor) -> Tensor:
    """BERT's loss: no shift, no cast."""
    labels = logits.machine.uncounted((case.batch * case.length,), "int64")
    return nll_loss(log_softmax(view(logits, -1, logits.shape[-1])), labels)
