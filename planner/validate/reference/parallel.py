"""Megatron-like tensor parallelism by hand: what is done to a tensor between the ranks of a group.

A branch begins with `enter_branch` and ends with the row-cut linear's `sum_over_ranks`; embedding
and loss are cut by vocabulary (arXiv:1909.08053, section 3).
"""

from typing import Any

from torch import Tensor
from torch import distributed as dist
from torch.autograd import Function
from torch.nn.functional import embedding

from planner.validate.reference.setting import TensorGroup


class _EnterBranch(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class _SumOverRanks(Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, group: Any) -> Tensor:
        ctx.mark_dirty(partial)
        dist.all_reduce(partial, group=group)
        return partial

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        del ctx
        return gradient, None


class _CrossEntropy(Function):
    """Mean over tokens of the cross-entropy; keeps the softmax of this rank's share."""

    @staticmethod
    def forward(ctx: Any, wide: Tensor, labels: Tensor, tensor: TensorGroup) -> Tensor:
        rows = wide.shape[1]
        largest = wide.amax(1)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=tensor.group)
        softmax = wide - largest.unsqueeze(1)
        places = labels - rows * tensor.rank
        outside = (places < 0) | (places >= rows)
        places.masked_fill_(outside, 0)
        chosen = softmax.gather(1, places.unsqueeze(1)).squeeze(1).masked_fill_(outside, 0)
        dist.all_reduce(chosen, group=tensor.group)
        softmax.exp_()
        total = softmax.sum(1)
        dist.all_reduce(total, group=tensor.group)
        softmax.div_(total.unsqueeze(1))
        ctx.save_for_backward(softmax, places, outside)
        return total.log_().sub_(chosen).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        softmax, places, outside = ctx.saved_tensors
        hits = outside.to(softmax.dtype).sub_(1)
        softmax.scatter_add_(1, places.unsqueeze(1), hits.unsqueeze(1))
        return softmax.mul_(gradient / len(places)), None, None


def enter_branch(hidden: Tensor, tensor: TensorGroup) -> Tensor:
    """The same on every rank; the gradient is summed over them."""
    return hidden if tensor.size == 1 else _EnterBranch.apply(hidden, tensor.group)


def sum_over_ranks(partial: Tensor, tensor: TensorGroup) -> Tensor:
    """Each rank's share, summed in place; the gradient is the same for all."""
    return _SumOverRanks.apply(partial, tensor.group)


def cross_entropy_over_ranks(wide: Tensor, labels: Tensor, tensor: TensorGroup) -> Tensor:
    """Loss of fp32 logits (tokens, V/t) and labels (tokens,) of the whole vocabulary."""
    return _CrossEntropy.apply(wide, labels, tensor)


def embed_over_ranks(weight: Tensor, tokens: Tensor, tensor: TensorGroup) -> Tensor:
    """Rows of a weight (V/t, H): of tokens that other ranks have, zeros; then summed."""
    rows = weight.shape[0]
    places = tokens - rows * tensor.rank
    outside = (places < 0) | (places >= rows)
    places.masked_fill_(outside, 0)
    hidden = embedding(places, weight).masked_fill_(outside.unsqueeze(-1), 0)
    return sum_over_ranks(hidden, tensor)
