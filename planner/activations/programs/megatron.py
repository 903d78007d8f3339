"""A transformer layer as Megatron-LM's fused kernels run it, cut by tensor parallelism.

Sources: Megatron-LM core_v0.14, core/transformer/transformer_layer.py:430-620 and attention.py:
560-800; the count of what is kept is arXiv:2205.05198, section 4 and table 2. Under sequence
parallelism hidden states hold S/t tokens between the branches.
"""

from collections.abc import Callable
from functools import partial

from planner.activations.eager import (
    Machine,
    Tensor,
    attention,
    bmm,
    contiguous,
    dropout,
    reshape,
    split,
    transpose,
    view,
)
from planner.activations.eager.pieces import repeat_heads
from planner.activations.programs import megatron_kernels as kernels
from planner.activations.programs.case import Case
from planner.activations.programs.reentrant import reentrant
from planner.errors import ModelError
from planner.model.description import Mlp, Norm

Branch = Callable[[Machine, Case, Tensor, bool], Tensor]


def block(
    m: Machine,
    case: Case,
    hidden: Tensor,
    *,
    sequence_parallel: bool | None = None,
    mixture: Branch | None = None,
    latent: Branch | None = None,
) -> Tensor:
    """Hidden states (B, S, H), or (B, S/t, H) with sequence parallelism, in and out.

    ``mixture`` runs the MLP of a block that routes its tokens to experts, ``latent`` attention with
    low-rank projections.

    Raises:
        ModelError: a block whose norms do not come before its branches.

    """
    low_rank = case.attention.latent is not None
    if case.layer.residual != "pre" or (low_rank and latent is None):
        raise ModelError(
            f"{case.family}: the megatron implementation knows only norms before "
            "each branch and no latent attention; use training.implementation: hf"
        )
    if sequence_parallel is None:
        sequence_parallel = case.training.sequence_parallel
    first, second = _norms(m, case)
    branch = normalise(m, case.norm, hidden, first)
    if low_rank and latent is not None:
        branch = latent(m, case, branch, sequence_parallel)
    else:
        branch = self_attention(m, case, branch, sequence_parallel=sequence_parallel)
    hidden = _join(m, case, branch, hidden)
    branch = normalise(m, case.norm, hidden, second)
    if isinstance(case.mlp, Mlp):
        branch = mlp(m, case, branch, sequence_parallel=sequence_parallel)
    else:
        assert mixture is not None
        branch = mixture(m, case, branch, sequence_parallel)
    return _join(m, case, branch, hidden)


def _join(m: Machine, case: Case, branch: Tensor, residual: Tensor) -> Tensor:
    with m.part("residual"):
        return kernels.dropout_add(branch, residual, case.probability(case.layer.hidden_dropout))


def normalise(m: Machine, norm: Norm, tensor: Tensor, weights: list[Tensor]) -> Tensor:
    """A norm with its weight and bias."""
    with m.part("norms"):
        return kernels.fused_norm(tensor, weights, centred=norm.kind == "layer")


def self_attention(m: Machine, case: Case, hidden: Tensor, *, sequence_parallel: bool) -> Tensor:
    """Fused projection, positions, attention, output projection."""
    tp = case.layout.tp
    with m.part("attention.qkv"):
        first = _first(case, sequence_parallel=sequence_parallel)
        mixed = first(
            hidden,
            *_matrices(m, case, "attention.qkv", "attention.q", "attention.k", "attention.v"),
        )
        query, key, value = _heads(case, mixed)
        del mixed
    query, key = _normed_heads(m, case, query, key)
    if case.attention.rotary_size:
        with m.part("attention.rotary"):
            query, key = kernels.rotary(query), kernels.rotary(key)
        if case.training.attention != "eager":
            # Fused attention wants all three laid out alike (TransformerEngine 2.11,
            # attention/dot_product_attention/utils.py, get_qkv_layout).
            value = contiguous(value)
    with m.part("attention.core"):
        core = partial(core_attention, case)
        if case.training.recompute == "selective":
            context = reentrant(core, query, key, value)
        else:
            context = core(query, key, value)
    del query, key, value
    with m.part("attention.o"):
        last = partial(kernels.scattering_linear, tp=tp) if sequence_parallel else kernels.linear
        return last(context, *_matrices(m, case, "attention.o"))


def _first(case: Case, *, sequence_parallel: bool) -> Callable[..., Tensor]:
    if sequence_parallel:
        return partial(kernels.gathering_linear, tp=case.layout.tp)
    return kernels.linear


def _heads(case: Case, mixed: Tensor) -> list[Tensor]:
    """q, k and v as views of what one product made: (B, S, heads, D)."""
    facts, tp = case.attention, case.layout.tp
    batch, length, _ = mixed.shape
    heads = facts.num_heads // tp
    groups = max(1, facts.num_kv_heads // tp)
    sizes = (heads * facts.head_size, groups * facts.head_size, groups * facts.value_head_size)
    pieces = split(mixed, sizes, -1)
    return [
        view(piece, batch, length, count, -1)
        for piece, count in zip(pieces, (heads, groups, groups), strict=True)
    ]


def _normed_heads(m: Machine, case: Case, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    norm = case.attention.qk_norm
    if norm is None:
        return query, key
    with m.part("norms"):
        centred = norm.kind == "layer"
        weights = [_named(m, case, name) for name in ("q_norm", "k_norm")]
        return (
            kernels.fused_norm(query, weights[0], centred=centred),
            kernels.fused_norm(key, weights[1], centred=centred),
        )


def core_attention(case: Case, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """From (B, S, heads, D) to the context (B, S, heads * D)."""
    batch, length = query.shape[:2]
    probability = case.probability(case.attention.dropout)
    if case.training.attention == "eager":
        return _eager(query, key, value, probability)
    turned = [transpose(tensor, 1, 2) for tensor in (query, key, value)]
    context = attention(*turned, probability=probability)
    return reshape(contiguous(transpose(context, 1, 2)), batch, length, -1)


def _eager(query: Tensor, key: Tensor, value: Tensor, probability: float) -> Tensor:
    """``DotProductAttention``, core/transformer/dot_product_attention.py:140-260."""
    heads = query.shape[2]
    times = heads // key.shape[2]
    key, value = _repeated(key, times), _repeated(value, times)
    scores = bmm(kernels.batched(query), transpose(kernels.batched(key), 1, 2))
    weights = kernels.scaled_masked_softmax(scores)
    del scores
    weights = dropout(weights, probability)
    return kernels.joined(bmm(weights, kernels.batched(value)), heads)


def _repeated(tensor: Tensor, times: int) -> Tensor:
    """``repeat_interleave`` over heads, where there are more query heads."""
    if times == 1:
        return tensor
    return repeat_heads(tensor, times)


def mlp(m: Machine, case: Case, hidden: Tensor, *, sequence_parallel: bool) -> Tensor:
    """Up (with the gate beside it), activation, down."""
    assert isinstance(case.mlp, Mlp)
    weights, biases = _matrices(m, case, "mlp")
    first = _first(case, sequence_parallel=sequence_parallel)
    with m.part("mlp"):
        wide = first(hidden, weights[:-1], biases[:-1])
        product = kernels.activation(wide, gated=case.mlp.gated)
        del wide
        if sequence_parallel:
            return kernels.scattering_linear(product, weights[-1:], biases[-1:], tp=case.layout.tp)
        return kernels.linear(product, weights[-1:], biases[-1:])


def _matrices(m: Machine, case: Case, *components: str) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of the layer's parameters of these components, in order."""
    found = [
        (parameter, m.parameters[parameter.name])
        for parameter in case.layer.parameters
        if parameter.component in components
    ]
    weights = [tensor for parameter, tensor in found if len(parameter.shape) > 1]
    biases = [tensor for parameter, tensor in found if len(parameter.shape) == 1]
    return weights, biases


_INNER_NORMS = ("q_norm", "k_norm", "q_a_layernorm", "kv_a_layernorm")
"""Inside of attention."""


def _norms(m: Machine, case: Case) -> list[list[Tensor]]:
    """Weight and bias of each of the block's norms, in order; those of heads left out."""
    modules: dict[str, list[Tensor]] = {}
    for parameter in case.layer.parameters:
        module = parameter.name.rpartition(".")[0]
        if parameter.component == "norm" and not module.endswith(_INNER_NORMS):
            modules.setdefault(module, []).append(m.parameters[parameter.name])
    return list(modules.values()) or [[], []]


def _named(m: Machine, case: Case, module: str) -> list[Tensor]:
    """Parameters of the module whose name ends so."""
    return [
        m.parameters[parameter.name]
        for parameter in case.layer.parameters
        if parameter.name.rpartition(".")[0].endswith(module)
    ]
