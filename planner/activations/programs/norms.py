"""Norms as transformers writes them."""

from planner.activations.eager import (
    Machine,
    Tensor,
    layer_norm,
    mean_last,
    mul,
    rsqrt,
    shift,
    square,
    to,
)
from planner.model.description import Norm


def normalise(m: Machine, norm: Norm, tensor: Tensor, name: str) -> Tensor:
    """The norm module ``name``."""
    weight = m.get(name, "weight")
    with m.part("norms"):
        if norm.kind == "layer":
            bias = m.get(name, "bias")
            return m.module(name, lambda x: layer_norm(x, weight, bias), tensor)
        if norm.kind == "rms":
            return m.module(name, lambda x: _rms(x, weight), tensor)
        return m.module(name, lambda x: _rms_one_plus(x, weight), tensor)


def _rms(x: Tensor, weight: Tensor | None) -> Tensor:
    """LlamaRMSNorm, models/llama/modeling_llama.py of transformers 5.23."""
    dtype = x.dtype
    x = to(x, "fp32")
    variance = mean_last(square(x))
    x = mul(x, rsqrt(shift(variance)))
    return to(x, dtype) if weight is None else mul(weight, to(x, dtype))


def _rms_one_plus(x: Tensor, weight: Tensor | None) -> Tensor:
    """Gemma2RMSNorm: everything in fp32, and 1 + weight is made for every call."""
    assert weight is not None
    wide = to(x, "fp32")
    output = mul(wide, rsqrt(shift(mean_last(square(wide)))))
    del wide
    output = mul(output, shift(to(weight, "fp32")))
    return to(output, x.dtype)
