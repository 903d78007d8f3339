"""A pipeline stage whose neighbours do not exist: collectives return at once, and tell nothing."""

from types import MethodType
from typing import Any

import torch
from deepspeed.runtime.pipe.engine import TENSOR_META_SIZE

from planner.validate.reference.setting import Setting


def know_shapes(engine: Any, setting: Setting) -> None:
    """Let the engine take from ``setting`` what the stage before would send: dtype and shape.

    It allocates what it would else (runtime/pipe/engine.py:1034-1050 of DeepSpeed 0.19.8).
    """
    training = setting.training
    shape = [
        training.micro_batch_size,
        training.sequence_length // setting.layout.sp,
        setting.model.hidden_size,
    ]

    def receive(self: Any, send_stage: int) -> torch.Tensor:
        del send_stage
        torch.empty(TENSOR_META_SIZE, dtype=torch.int32, device=self.device)
        return self._allocate_or_extend_buffers(0, shape, setting.dtype)

    engine._recv_tensor_meta = MethodType(receive, engine)
