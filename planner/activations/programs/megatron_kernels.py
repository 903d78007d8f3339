"""Kernels of Megatron-LM as far as they differ from PyTorch's own: fused, and cut by tensors.

What they keep is what arXiv:2205.05198, section 4, counts, beside numbers of one row's size. Files
named below are Megatron-LM's, core_v0.14. With sequence parallelism the hidden states outside of
attention and MLP are cut along the sequence (section 4.2.2).
"""

from collections.abc import Sequence

from planner.activations.eager import Tensor, begin, empty, finish
from planner.activations.eager.autograd import Node
from planner.activations.eager.tensor import contiguous_strides
from planner.activations.eager.views import like

Weights = Sequence[Tensor]
"""Parameters that one matrix product uses side by side, as the fused q, k and v."""


def fused_norm(tensor: Tensor, weights: Weights, *, centred: bool) -> Tensor:
    """Layer norm or RMS norm in one kernel: keeps its input and fp32 statistics of each row.

    Source: ``FusedLayerNorm``, core/fusions/fused_layer_norm.py, and apex.
    """
    node = begin(_fused_norm_back, tensor, *weights)
    rows = (*tensor.shape[:-1], 1)
    if node is not None:
        node.save(tensor)
    result = like(tensor)
    statistics = [empty(tensor.machine, rows, "fp32") for _ in range(1 + centred)]
    if node is not None:
        node.save(*statistics)
    return finish(node, result)


def _fused_norm_back(node: Node, gradient: Tensor) -> list[Tensor | None]:
    (tensor, *_) = node.unpack()
    return [like(tensor), *_gradients(node, gradient.dtype)]


def _gradients(node: Node, dtype: str, first: int = 1) -> list[Tensor | None]:
    """New gradients for the node's parameters; None where the product adds to a main gradient."""
    return [
        empty(node.machine, expected[0], dtype) if node.needs(place) else None
        for place, expected in enumerate(node.inputs)
        if place >= first and expected is not None
    ]


def linear(tensor: Tensor, weights: Weights, biases: Weights = ()) -> Tensor:
    """One product with all weights side by side; keeps its input.

    Source: ``LinearWithGradAccumulationAndAsyncCommunication``,
    core/tensor_parallel/layers.py:431. The gradient of the input is reduced in place.
    """
    node = begin(_linear_back, tensor, *weights, *biases)
    if node is not None:
        node.save(tensor)
    return finish(node, _product(tensor, weights, tensor.shape[:-1]))


def _product(tensor: Tensor, weights: Weights, lead: tuple[int, ...]) -> Tensor:
    outputs = sum(weight.numel for weight in weights) // tensor.shape[-1]
    return tensor.machine.product((*lead, outputs), tensor.dtype)


def _linear_back(node: Node, gradient: Tensor) -> list[Tensor | None]:
    (tensor,) = node.unpack()
    node.machine.multiply()
    return [like(tensor), *_gradients(node, gradient.dtype)]


def gathering_linear(tensor: Tensor, weights: Weights, biases: Weights = (), *, tp: int) -> Tensor:
    """The first product of a branch under sequence parallelism: keeps only its own share.

    The whole sequence is gathered for the product and again in backward; the gradient of the whole
    is scattered back (layers.py:455-475, 500-570).
    """
    node = begin(_gathering_back, tensor, *weights, *biases, facts=tp)
    if node is not None:
        node.save(tensor)
    whole = _gathered(tensor, tp)
    result = _product(whole, weights, whole.shape[:-1])
    return finish(node, result)


def _gathered(tensor: Tensor, tp: int) -> Tensor:
    batch, length, *rest = tensor.shape
    return empty(tensor.machine, (batch, length * tp, *rest), tensor.dtype)


def _gathering_back(node: Node, gradient: Tensor) -> list[Tensor | None]:
    (tensor,) = node.unpack()
    whole = _gathered(tensor, node.facts)
    node.machine.multiply()
    to_whole = like(whole)
    to_tensor = like(tensor)
    made = _gradients(node, gradient.dtype)
    del whole, to_whole
    return [to_tensor, *made]


def scattering_linear(tensor: Tensor, weights: Weights, biases: Weights = (), *, tp: int) -> Tensor:
    """The last product of a branch under sequence parallelism: partial sums are scattered.

    Source: ``RowParallelLinear.forward``, layers.py:1180-1230.
    """
    node = begin(_scattering_back, tensor, *weights, *biases, facts=tp)
    if node is not None:
        node.save(tensor)
    whole = _product(tensor, weights, tensor.shape[:-1])
    batch, length, size = whole.shape
    result = empty(tensor.machine, (batch, length // tp, size), tensor.dtype)
    del whole
    return finish(node, result)


def _scattering_back(node: Node, gradient: Tensor) -> list[Tensor | None]:
    (tensor,) = node.unpack()
    whole = _gathered(gradient, node.facts)
    node.machine.multiply()
    result: list[Tensor | None] = [like(tensor), *_gradients(node, gradient.dtype)]
    del whole
    return result


def scattered(tensor: Tensor, *, tp: int) -> Tensor:
    """Partial sums of the embedding, summed and cut along the sequence.

    Source: ``reduce_scatter_to_sequence_parallel_region``, core/tensor_parallel/mappings.py.
    """
    node = begin(_scattered_back, tensor, facts=tp)
    batch, length, size = tensor.shape
    return finish(node, empty(tensor.machine, (batch, length // tp, size), tensor.dtype))


def _scattered_back(node: Node, gradient: Tensor) -> list[Tensor]:
    return [_gathered(gradient, node.facts)]


def regathered(tensor: Tensor, *, tp: int) -> Tensor:
    """A share of the sequence made whole; the gradient is summed and cut again."""
    node = begin(_regathered_back, tensor)
    return finish(node, _gathered(tensor, tp))


def _regathered_back(node: Node, gradient: Tensor) -> list[Tensor]:
    expected = node.inputs[0]
    assert expected is not None
    return [empty(node.machine, expected[0], gradient.dtype)]


def rotary(tensor: Tensor) -> Tensor:
    """Rotary positions in one kernel: keeps nothing of its own.

    Source: ``fused_apply_rotary_pos_emb``, core/extensions/transformer_engine.py and apex.
    """
    node = begin(_rotary_back, tensor)
    return finish(node, empty(tensor.machine, tensor.shape, tensor.dtype))


def _rotary_back(node: Node, gradient: Tensor) -> list[Tensor]:
    del node
    return [empty(gradient.machine, gradient.shape, gradient.dtype)]


def batched(tensor: Tensor) -> Tensor:
    """(B, S, heads, D) as (B * heads, S, D): a view, since Megatron's layout is (S, B, heads, D).

    Source: core/transformer/dot_product_attention.py:170-190.
    """
    batch, length, heads, size = tensor.shape
    node = begin(_viewed_back, tensor)
    return finish(node, _seen_as(tensor, (batch * heads, length, size)))


def _seen_as(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    base = tensor if tensor.base is None else tensor.base
    return Tensor(tensor.storage, shape, contiguous_strides(shape), tensor.dtype, base)


def _viewed_back(node: Node, gradient: Tensor) -> list[Tensor]:
    expected = node.inputs[0]
    assert expected is not None
    return [_seen_as(gradient, expected[0])]


def joined(context: Tensor, heads: int) -> Tensor:
    """(B * heads, S, D) as (B, S, heads * D), which takes a copy."""
    node = begin(_viewed_back, context)
    batches, length, size = context.shape
    shape = (batches // heads, length, heads * size)
    return finish(node, empty(context.machine, shape, context.dtype))


def scaled_masked_softmax(scores: Tensor) -> Tensor:
    """Scale, mask and softmax in one kernel and in 16 bits: keeps its result.

    Source: ``FusedScaleMaskSoftmax``, core/fusions/fused_softmax.py:9-60; its backward writes into
    the gradient that it gets (megatron/legacy/fused_kernels/scaled_masked_softmax.h).
    """
    node = begin(_in_place_back, scores)
    result = like(scores)
    if node is not None:
        node.save(result)
    return finish(node, result)


def _in_place_back(node: Node, gradient: Tensor) -> list[Tensor]:
    node.unpack()
    return [gradient.again()]


def activation(tensor: Tensor, *, gated: bool) -> Tensor:
    """GELU, or SwiGLU over halves of the last dim; both keep their input only.

    Source: core/fusions/fused_bias_gelu.py:60 and fused_bias_swiglu.py:60.
    """
    node = begin(_activation_back, tensor)
    if node is not None:
        node.save(tensor)
    size = tensor.shape[-1] // 2 if gated else tensor.shape[-1]
    return finish(node, empty(tensor.machine, (*tensor.shape[:-1], size), tensor.dtype))


def _activation_back(node: Node, gradient: Tensor) -> list[Tensor]:
    (tensor,) = node.unpack()
    del gradient
    return [like(tensor)]


def dropout_add(branch: Tensor, residual: Tensor, probability: float) -> Tensor:
    """Dropout of a branch, added to the residual: keeps the mask, a byte an element.

    Source: ``bias_dropout_add_fused_train``, core/fusions/fused_bias_dropout.py:60.
    """
    node = begin(_dropout_add_back, branch, residual)
    if node is not None and probability:
        node.save(like(branch, "bool"))
    return finish(node, like(residual))


def _dropout_add_back(node: Node, gradient: Tensor) -> list[Tensor]:
    to_branch = like(gradient) if node.unpack() else gradient.again()
    return [to_branch, gradient.again()]
