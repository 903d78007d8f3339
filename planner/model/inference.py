"""Memory of running a trained model: weights and the cache of keys and values, on 1 or tp devices.

Only these two: activations of a step, logits and what the runtime keeps for itself are not counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from planner.errors import LayoutError, ModelError
from planner.model.counts import BITS, weight_bytes
from planner.model.description import Attention, Layer, Model, Parameter
from planner.units import ceil_div

CACHE_PRECISION = {"fp32": "fp32", "bf16": "bf16", "int8": "bf16", "int4": "bf16"}
"""Quantised weights compute in bf16, and cache what they compute."""

KEY_VALUE: tuple[str, ...] = ("attention.k", "attention.v")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """What each of ``tp`` devices holds."""

    precision: str
    context_tokens: int
    batch: int
    tp: int
    weights_bytes: int
    kv_cache_bytes: int
    kv_cache_bytes_per_token: int
    """Of one more token, while no sliding window is full."""
    duplicated_bytes: int
    """What the tp devices hold in all beyond one copy: norms, routers, latents, shared heads."""
    rule_weights_bytes: int
    """The rough rule's first term: parameters x bytes."""
    rule_cache_bytes: int
    """Its second: batch x sequence x hidden x bytes. One activation of one layer: it leaves out
    that every layer caches keys and values, and that grouped or latent attention caches less."""

    @property
    def total_bytes(self) -> int:
        """Weights and cache of one device."""
        return self.weights_bytes + self.kv_cache_bytes

    @property
    def rule_bytes(self) -> int:
        """The rough rule for the whole model, cut by nothing."""
        return self.rule_weights_bytes + self.rule_cache_bytes


def inference(
    model: Model, *, context_tokens: int, batch: int = 1, tp: int = 1, precision: str = "bf16"
) -> Inference:
    """Memory of one device at ``context_tokens`` tokens in each of ``batch`` sequences.

    Raises ModelError for an imported model (its attention is not known) and for a context that
    learned positions do not reach, LayoutError for a tp that does not divide the heads.
    """
    _check(model, context_tokens, tp)
    cache_bits = BITS[CACHE_PRECISION[precision]]
    weights, cache, whole = (
        _weights(model, precision, tp),
        _cache(model, context_tokens, tp) * batch * cache_bits // 8,
        _weights(model, precision, 1) + _cache(model, context_tokens, 1) * batch * cache_bits // 8,
    )
    return Inference(
        precision=precision,
        context_tokens=context_tokens,
        batch=batch,
        tp=tp,
        weights_bytes=weights,
        kv_cache_bytes=cache,
        kv_cache_bytes_per_token=_cache(model, 1, tp) * cache_bits // 8,
        duplicated_bytes=tp * (weights + cache) - whole,
        rule_weights_bytes=weight_bytes(model.num_parameters, precision),
        rule_cache_bytes=batch * context_tokens * model.hidden_size * cache_bits // 8,
    )


def cache_elements(attention: Attention | None, *, tp: int = 1) -> int:
    """Elements that one layer caches for one token on one device.

    ``2 G D`` with grouped heads, of which a device holds ``ceil(G / tp)``: fewer heads than devices
    are held by several. Latent attention caches ``kv_rank + rope_head_size`` whole on every device
    (transformers 5.23 modeling_deepseek_v3.py:428-452; arXiv:2405.04434, section 2.1.2). An encoder
    caches nothing.
    """
    if attention is None or not attention.causal:
        return 0
    if attention.latent is not None:
        return attention.latent.kv_rank + attention.latent.rope_head_size
    heads = ceil_div(attention.num_kv_heads, tp)
    return heads * (attention.head_size + attention.value_head_size)


def local_parameters(model: Model, *, tp: int) -> int:
    """Weights of one of ``tp`` devices, the last, fuller one where a size does not divide.

    Each parameter is cut along its ``tp_dim``; norms, routers, latent down-projections and learned
    positions are whole everywhere; key and value heads as `cache_elements` says. A tied head is
    the embedding's slice and costs nothing.
    """
    return sum(_local(parameter, layer.attention, tp) for parameter, layer in _all(model))


def _weights(model: Model, precision: str, tp: int) -> int:
    return weight_bytes(local_parameters(model, tp=tp), precision)


def _cache(model: Model, context_tokens: int, tp: int) -> int:
    """Elements of one sequence in all layers; a sliding window forgets what it does not show."""
    return sum(
        cache_elements(attention, tp=tp) * min(context_tokens, attention.window or context_tokens)
        for attention in (placed.layer.attention for placed in model.blocks)
        if attention is not None
    )


def _local(parameter: Parameter, attention: Attention | None, tp: int) -> int:
    if parameter.tp_dim is None:
        return parameter.numel
    size = parameter.shape[parameter.tp_dim]
    rest = parameter.numel // size if size else 0
    if attention is not None and parameter.component in KEY_VALUE:
        return rest * size * ceil_div(attention.num_kv_heads, tp) // attention.num_kv_heads
    if attention is not None and parameter.component == "attention.qkv":
        return rest * _fused_rows(attention, tp)
    return rest * ceil_div(size, tp)


def _fused_rows(attention: Attention, tp: int) -> int:
    queries = attention.num_heads // tp * attention.head_size
    return queries + ceil_div(attention.num_kv_heads, tp) * (
        attention.head_size + attention.value_head_size
    )


def _all(model: Model) -> Iterable[tuple[Parameter, Layer]]:
    return (
        (parameter, placed.layer)
        for placed in model.placed()
        for parameter in placed.layer.parameters
    )


def _check(model: Model, context_tokens: int, tp: int) -> None:
    if model.inventory_only:
        raise ModelError(
            f"{model.name}: an imported inventory tells nothing of attention, so no cache follows; "
            "describe the model by a config.json of a known family"
        )
    if model.stem.layer.positions == "learned" and context_tokens > model.max_positions:
        raise ModelError(
            f"{model.name}: a context of {context_tokens} tokens is above its "
            f"{model.max_positions} learned positions; ask for at most {model.max_positions}"
        )
    heads = {placed.layer.attention.num_heads for placed in model.blocks if placed.layer.attention}
    for count in heads:
        if count % tp:
            choices = [divisor for divisor in range(1, count + 1) if count % divisor == 0]
            raise LayoutError(
                f"tp: {tp} does not divide {model.name}'s {count} attention heads; "
                f"choose one of {choices}"
            )
