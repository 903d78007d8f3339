"""From hidden states to queries, keys and values, and back: fused projections, Conv1D, late norms.

Sources, transformers 5.23: the ``forward`` of each family's attention module (modeling_gpt2.py:144,
modeling_gpt_neox.py:184, modeling_falcon.py:243, modeling_phi3.py:207,
modeling_opt.py:135, modeling_gemma3.py:330, modeling_phi.py:178).
"""

from planner.activations.eager import (
    Machine,
    Tensor,
    add,
    contiguous,
    expand,
    linear,
    narrow,
    reshape,
    scale,
    select,
    split,
    transpose,
    view,
)
from planner.activations.eager.pieces import pick
from planner.activations.programs.case import Case
from planner.activations.programs.hf_attention import heads
from planner.activations.programs.hf_rotary import rotated
from planner.activations.programs.hf_scores import Heads, Scored, score
from planner.activations.programs.modules import conv1d, dropped, normalise, project
from planner.activations.programs.shared import Shared
from planner.model.description import Norm

NORM_AFTER_TURN = {"gemma3", "gemma3_text", "phi"}
"""Norms of queries and keys come after the heads have moved in front of the tokens."""
ATTENTION_BY_POSITION = {"gpt2", "gpt_neox", "falcon"}
"""Blocks hand hidden states to attention by position, the others by keyword."""
DROPS_INSIDE = {"gpt2", "starcoder2"}
"""The dropout of a branch is inside its module, where the module's locals are still alive."""


def self_attention(m: Machine, case: Case, hidden: Tensor, shared: Shared) -> Scored:
    """Any family's attention module."""
    if case.family in ATTENTION_BY_POSITION:
        return m.module("self_attn", lambda x: _attention(m, case, x, shared), hidden)
    return m.module("self_attn", lambda: _attention(m, case, hidden, shared))


def _attention(m: Machine, case: Case, hidden: Tensor, shared: Shared) -> Scored:
    batch, length, _ = hidden.shape
    kept: list[Tensor] = []
    fused, (query, key, value) = _split(m, case, hidden)
    if case.attention.rotary_size:
        with m.part("attention.rotary"):
            cos, sin = shared.position_embeddings(m, case)
            query, key = rotated(case, (query, key), cos, sin, kept)
    output, weights = score(m, case, (query, key, value), shared)
    with m.part("attention.o"):
        output = contiguous(reshape(output, batch, length, -1))
        output = linear_of(m, case, output, case.module("attention.o"))
        if case.family in DROPS_INSIDE:
            output = dropped(m, case, output)
    del fused, kept
    return output, weights


def linear_of(m: Machine, case: Case, hidden: Tensor, name: str) -> Tensor:
    """The family's linear module."""
    if case.family == "gpt2":
        return conv1d(m, hidden, name)
    bias = m.get(name, "bias")
    if case.family != "falcon" or bias is None:
        return project(m, hidden, name)
    weight = m.get(name, "weight")
    assert weight is not None
    return m.module(name, lambda x: _falcon_linear(x, weight, bias), hidden)


def _falcon_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``FalconLinear.forward``: the bias is added apart."""
    return add(linear(x, weight), bias)


def _split(m: Machine, case: Case, hidden: Tensor) -> tuple[Tensor | None, Heads]:
    """What the module's locals hold on to, and q, k and v as (B, A, S, D)."""
    if not case.attention.fused_qkv:
        return None, _separate(m, case, hidden)
    with m.part("attention.qkv"):
        qkv = linear_of(m, case, hidden, case.module("attention.qkv"))
        match case.family:
            case "phi3":
                return qkv, _sliced(case, qkv)
            case "gpt_neox":
                return _head_by_head(case, qkv)
            case "falcon":
                return qkv, _falcon_heads(case, qkv)
            case _:
                return None, _in_three(case, qkv)


def _separate(m: Machine, case: Case, hidden: Tensor) -> Heads:
    if case.family == "opt":
        return _scaled_first(m, case, hidden)
    norm = case.attention.qk_norm
    if norm is not None and case.attention.qk_norm_over == "projection":
        return _normed_whole(m, case, hidden, norm)
    if norm is None or case.family not in NORM_AFTER_TURN:
        return heads(m, case, hidden)
    query, key, value = (
        turned(case, project(m, hidden, case.module(f"attention.{letter}"))) for letter in "qkv"
    )
    ending = "layernorm" if case.family == "phi" else "norm"
    query = normalise(m, norm, query, f"self_attn.q_{ending}")
    key = normalise(m, norm, key, f"self_attn.k_{ending}")
    return query, key, value


def _normed_whole(m: Machine, case: Case, hidden: Tensor, norm: Norm) -> Heads:
    """OLMo 2: all projections and norms, then the heads."""
    names = [case.module(f"attention.{letter}") for letter in "qkv"]
    query = normalise(m, norm, project(m, hidden, names[0]), "self_attn.q_norm")
    key = normalise(m, norm, project(m, hidden, names[1]), "self_attn.k_norm")
    value = project(m, hidden, names[2])
    return turned(case, query), turned(case, key), turned(case, value)


def _scaled_first(m: Machine, case: Case, hidden: Tensor) -> Heads:
    """OPT scales the queries, not the scores."""
    with m.part("attention.q"):
        query = scale(project(m, hidden, case.module("attention.q")))
        query = turned(case, query)
    with m.part("attention.k"):
        key = project(m, hidden, case.module("attention.k"))
    with m.part("attention.v"):
        value = project(m, hidden, case.module("attention.v"))
    return query, turned(case, key), turned(case, value)


def turned(case: Case, x: Tensor) -> Tensor:
    """(B, S, A * D) as (B, A, S, D)."""
    batch, length, _ = x.shape
    return transpose(view(x, batch, length, -1, case.attention.head_size), 1, 2)


def _widths(case: Case, qkv: Tensor) -> tuple[int, int]:
    """Columns of queries and of keys in this rank's fused projection."""
    facts = case.attention
    unit = qkv.shape[-1] // (facts.num_heads + 2 * facts.num_kv_heads)
    return unit * facts.num_heads, unit * facts.num_kv_heads


def _in_three(case: Case, qkv: Tensor) -> Heads:
    """GPT-2, and the first Qwen."""
    queries, keys = _widths(case, qkv)
    query, key, value = split(qkv, (queries, keys, keys), 2)
    key, value = turned(case, key), turned(case, value)
    return turned(case, query), key, value


def _sliced(case: Case, qkv: Tensor) -> Heads:
    """Phi-3: three slices."""
    queries, keys = _widths(case, qkv)
    query, key, value = (narrow(qkv, -1, width) for width in (queries, keys, keys))
    return turned(case, query), turned(case, key), turned(case, value)


def _head_by_head(case: Case, qkv: Tensor) -> tuple[Tensor, Heads]:
    """GPT-NeoX: q, k and v of one head side by side."""
    batch, length, _ = qkv.shape
    size = case.attention.head_size
    qkv = transpose(view(qkv, batch, length, -1, 3 * size), 1, 2)
    query, key, value = split(qkv, (size, size, size), -1)
    return qkv, (query, key, value)


def _falcon_heads(case: Case, qkv: Tensor) -> Heads:
    """``_split_heads``, then (B, A, S, D), copied where the heads are not in one piece."""
    query, key, value = _falcon_pieces(case, qkv)
    batch, length, _, size = query.shape
    query, key, value = (
        reshape(transpose(x, 1, 2), batch, x.shape[2], length, size) for x in (query, key, value)
    )
    return query, key, value


def _falcon_pieces(case: Case, qkv: Tensor) -> Heads:
    facts = case.attention
    batch, length, _ = qkv.shape
    size = facts.head_size
    if facts.num_kv_heads == facts.num_heads:
        qkv = view(qkv, batch, length, -1, 3, size)
        query, key, value = (select(qkv, 3) for _ in range(3))
        return query, key, value
    if facts.num_kv_heads > 1:
        each = facts.num_heads // facts.num_kv_heads
        qkv = view(qkv, batch, length, -1, each + 2, size)
        query = narrow(qkv, 3, each)
        key, value = pick(qkv, 3), pick(qkv, 3)
        key, value = (expand(x, *query.shape) for x in (key, value))
        query, key, value = (reshape(x, batch, length, -1, size) for x in (query, key, value))
        return query, key, value
    qkv = view(qkv, batch, length, -1, size)
    query = narrow(qkv, 2, qkv.shape[2] - 2)
    return query, pick(qkv, 2), pick(qkv, 2)
