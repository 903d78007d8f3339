"""A pipeline stage whose neighbours do not exist: collectives return at once, and tell nothing."""

from math import prod
from types import MethodType
from typing import Any

import torch
from deepspeed.runtime.pipe.engine import TENSOR_META_SIZE

from planner.validate.reference.setting import Setting, TensorGroup


def know_shapes(engine: Any, setting: Setting) -> None:
    """Let the engine take from ``setting`` what the stage before would send: dtype and shape.

    It allocates what it would else (runtime/pipe/engine.py:1034-1050 of DeepSpeed 0.19.8).
    """
    training, tensor = setting.training, setting.tensor
    shape = [
        training.micro_batch_size,
        training.sequence_length // setting.layout.sp,
        setting.model.hidden_size,
    ]

    messages = [(shape, setting.dtype)]
    if engine.is_pipe_partitioned:
        told = _cut(shape, tensor)
        engine.pipe_partition_input_meta_cache = told
        engine.grad_partition_grad_layer_meta_cache = told
        engine.pipe_partition_grad_meta_cache = told
        share = [prod(shape) // tensor.size]
        messages = [(list(told.shape), told.dtype), (share, setting.dtype)]

    def receive(self: Any, send_stage: int) -> torch.Tensor | tuple[torch.Tensor, ...]:
        del send_stage
        torch.empty(TENSOR_META_SIZE, dtype=torch.int32, device=self.device)
        buffers = [
            self._allocate_or_extend_buffers(place, *message)
            for place, message in enumerate(messages)
        ]
        return tuple(buffers) if len(buffers) > 1 else buffers[0]

    engine._recv_tensor_meta = MethodType(receive, engine)


def _cut(shape: list[int], tensor: TensorGroup) -> torch.Tensor:
    """What tells how a tensor is cut evenly (``PartitionedTensor.to_meta``, runtime/utils.py:734).

    The engine keeps on the host what it is told first; neighbours who do not exist tell nothing.
    What it tells itself it keeps too, but on a CPU rank that is the very tensor that it overwrites
    when gradients are whole (pipe/engine.py:1170-1173), and the next micro-batch fails.
    """
    share = prod(shape) // tensor.size
    bounds = [share * place for place in range(tensor.size + 1)]
    return torch.tensor([len(shape), *shape, tensor.size, tensor.rank, *bounds])
