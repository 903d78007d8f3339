"""Multi-head latent attention as Megatron-Core runs it.

Source: Megatron-LM, core/transformer/multi_latent_attention.py (``get_query_key_value_tensors``
without ``apply_rope_fusion``): queries and keys are put together anew, values are copied.
"""

from functools import partial

from planner.activations.eager import (
    Machine,
    Tensor,
    cat,
    contiguous,
    expand,
    split,
    unsqueeze,
    view,
)
from planner.activations.programs import megatron_kernels as kernels
from planner.activations.programs.case import Case
from planner.activations.programs.megatron import core_attention
from planner.activations.programs.reentrant import reentrant
from planner.model.description import LatentAttention


def latent_attention(m: Machine, case: Case, hidden: Tensor, sequence_parallel: bool) -> Tensor:  # noqa: FBT001 - megatron.Branch
    """Hidden states (B, S, H), or (B, S/t, H), in and out."""
    latent = case.attention.latent
    assert latent is not None
    cut = case.layout.tp if sequence_parallel else 1
    with m.part("attention.q"):
        query = _queries(m, case, hidden, latent, cut)
    with m.part("attention.kv_down"):
        combined = kernels.linear(hidden, _matrix(m, case, "attention.kv_down"))
        narrow, turned = split(combined, (latent.kv_rank, latent.rope_head_size), -1)
        del combined
        narrow = kernels.fused_norm(narrow, _norm(m, case, "kv_a_layernorm"), centred=False)
        turned = kernels.rotary(turned)
    with m.part("attention.kv_up"):
        both = _up(narrow, _matrix(m, case, "attention.kv_up"), cut)
        del narrow
        key, value = _keys_and_values(case, both, turned, latent)
        del both, turned
    query, key, value = contiguous(query), contiguous(key), contiguous(value)
    with m.part("attention.core"):
        core = partial(core_attention, case)
        selective = case.training.recompute == "selective"
        context = reentrant(core, query, key, value) if selective else core(query, key, value)
    del query, key, value
    with m.part("attention.o"):
        last = partial(kernels.scattering_linear, tp=cut) if cut > 1 else kernels.linear
        return last(context, _matrix(m, case, "attention.o"))


def _up(tensor: Tensor, weights: list[Tensor], cut: int) -> Tensor:
    if cut > 1:
        return kernels.gathering_linear(tensor, weights, tp=cut)
    return kernels.linear(tensor, weights)


def _queries(m: Machine, case: Case, hidden: Tensor, latent: LatentAttention, cut: int) -> Tensor:
    """(B, S, heads, D): what is rotated is put beside what is not."""
    if latent.q_rank is None:
        mixed = _up(hidden, _matrix(m, case, "attention.q"), cut)
    else:
        narrow = kernels.linear(hidden, _matrix(m, case, "attention.q_down"))
        narrow = kernels.fused_norm(narrow, _norm(m, case, "q_a_layernorm"), centred=False)
        mixed = _up(narrow, _matrix(m, case, "attention.q_up"), cut)
        del narrow
    batch, length, _ = mixed.shape
    mixed = view(mixed, batch, length, -1, case.attention.head_size)
    plain, turned = split(mixed, (latent.nope_head_size, latent.rope_head_size), -1)
    del mixed
    turned = kernels.rotary(turned)
    return cat([plain, turned], -1)


def _keys_and_values(
    case: Case, both: Tensor, turned: Tensor, latent: LatentAttention
) -> tuple[Tensor, Tensor]:
    batch, length, _ = both.shape
    sizes = (latent.nope_head_size, case.attention.value_head_size)
    both = view(both, batch, length, -1, sum(sizes))
    plain, value = split(both, sizes, -1)
    del both
    heads = plain.shape[2]
    if turned.shape[1] != length:
        # Under sequence parallelism the rotated part of the keys is gathered.
        turned = kernels.regathered(turned, tp=length // turned.shape[1])
    wide = expand(unsqueeze(turned, 2), batch, length, heads, latent.rope_head_size)
    return cat([plain, wide], -1), value


def _matrix(m: Machine, case: Case, component: str) -> list[Tensor]:
    return [
        m.parameters[parameter.name]
        for parameter in case.layer.parameters
        if parameter.component == component and len(parameter.shape) > 1
    ]


def _norm(m: Machine, case: Case, module: str) -> list[Tensor]:
    return [
        m.parameters[parameter.name]
        for parameter in case.layer.parameters
        if parameter.name.rpartition(".")[0].endswith(module)
    ]
