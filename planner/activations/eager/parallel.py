"""DeepSpeed's functions around layers that tensor parallelism has cut.

Source: deepspeed 0.19.8 module_inject/layers.py: RowParallel :204, ColumnParallel :287 and
GatherFromTensorParallelRegion :317. Collectives work in place; buffers of the communication
library itself are not PyTorch's and are left out.
"""

from planner.activations.eager.autograd import Node, begin, finish
from planner.activations.eager.tensor import Tensor, empty
from planner.activations.eager.views import cat, contiguous, narrow, view


def reduce_backward(tensor: Tensor) -> Tensor:
    """ColumnParallel: the input as it is; its gradient is summed over the ranks."""
    node = begin(_reduced_back, tensor)
    return tensor if node is None else finish(node, tensor.again())


def _reduced_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    del node
    copy = contiguous(gradient)
    del copy
    return (gradient.again(),)


def reduce_forward(tensor: Tensor) -> Tensor:
    """RowParallel: summed over the ranks in place; the gradient is passed on."""
    node = begin(_passed_back, tensor)
    return tensor if node is None else finish(node, tensor.again())


def _passed_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    del node
    return (gradient.again(),)


def gather_last(tensor: Tensor, ranks: int) -> Tensor:
    """The last dims of all ranks side by side: a buffer for all of them, then their ``cat``."""
    node = begin(_gathered_back, tensor)
    piece = contiguous(tensor)
    lead = piece.shape[:-1]
    width = piece.shape[-1]
    buffer = empty(piece.machine, (ranks * lead[0], *lead[1:], width), piece.dtype)
    shards = view(buffer, ranks, *piece.shape)
    whole = cat([_shard(shards) for _ in range(ranks)], -1)
    return finish(node, whole)


def _shard(shards: Tensor) -> Tensor:
    """One rank's piece of the buffer."""
    return Tensor(shards.storage, shards.shape[1:], shards.strides[1:], shards.dtype)


def _gathered_back(node: Node, gradient: Tensor) -> tuple[Tensor]:
    expected = node.inputs[0]
    assert expected is not None
    return (contiguous(narrow(gradient, -1, expected[0][-1])),)
