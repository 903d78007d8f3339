"""Loops of DeepSpeed over all ranks of a group that only make views: done once, for one rank.

Without these a gather takes the longer the more ranks there are, though no rank's view allocates
anything. What is allocated, and who holds it how long, is what runtime/zero/
partition_parameters.py:760 and :1329 and runtime/comm/coalesced_collectives.py:81 of 0.19.8 do.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import CodeType
from typing import Any

import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero import stage3
from deepspeed.runtime.zero.partition_parameters import (
    AllGatherCoalescedHandle,
    Init,
    ZeroParamStatus,
    _dist_allgather_fn,
)

from planner.validate.replaced import replaced

GATHER = "_all_gather_dtype"


@contextmanager
def shortcuts() -> Iterator[None]:
    """Inside, gathering and reducing cost as much as one rank's share.

    A release whose gather has other arguments, as 0.16.9's, keeps its own: slower, and the same.
    """
    with ExitStack() as stack:
        if _arguments(_inner(Init._convert_to_deepspeed_param)) == _arguments(_gather.__code__):
            stack.enter_context(_gathering())
            stack.enter_context(replaced(AllGatherCoalescedHandle, wait=_wait))
        stack.enter_context(replaced(stage3, reduce_scatter_coalesced=_reduce_scatter))
        yield


@contextmanager
def _gathering() -> Iterator[None]:
    """DeepSpeed's function is local to a method, so its code is what can be changed."""
    method: Any = Init._convert_to_deepspeed_param
    before: CodeType = method.__code__
    own = _inner(method)
    consts = tuple(_gather.__code__ if each is own else each for each in before.co_consts)
    method.__code__ = before.replace(co_consts=consts)
    try:
        yield
    finally:
        method.__code__ = before


def _inner(method: Any) -> CodeType:
    code: CodeType = method.__code__
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return next(each for each in inner if each.co_name == GATHER)


def _arguments(code: CodeType) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount]


def _gather(  # runs with the names of partition_parameters.py
    params: Sequence[Any],
    world_size: int,
    rank_in_group: int,
    ds_process_group: Any,
    allgather_dtype: Any,
) -> Any:
    """Start to gather; every rank's part is seen as this one's."""
    second = params[0].ds_secondary_tensor is not None
    numels = [
        each.ds_tensor.ds_numel * (each.ds_secondary_tensor_num_of_groups if second else 1)
        for each in params
    ]
    device = get_accelerator().current_device_name()
    flat = torch.empty(sum(numels) * world_size, dtype=allgather_dtype, device=device)
    part = flat.narrow(0, sum(numels) * rank_in_group, sum(numels))
    held = [each.ds_secondary_tensor if second else each.ds_tensor for each in params]
    torch.cat([each.to(device).to(allgather_dtype) for each in held], out=part)
    return AllGatherCoalescedHandle(
        allgather_handle=_dist_allgather_fn(part, flat, ds_process_group),
        params=params,
        partitions=[part] * world_size,
        world_size=world_size,
        use_secondary_tensor=second,
    )


WAIT = AllGatherCoalescedHandle.wait


def _wait(self: Any, handle_dependency: bool = True) -> None:
    """End to gather: every parameter gets a tensor of its own, a copy of all parts."""
    if self.quantization:
        WAIT(self, handle_dependency)
        return
    if self.complete:
        return
    self.allgather_handle.wait()
    part = self.partitions[0]
    for each in self.params:
        whole = torch.empty(each.ds_numel, dtype=part.dtype, device=part.device)
        each.data = whole.view(each.ds_shape).to(each.ds_tensor.dtype)
        each.ds_status = ZeroParamStatus.AVAILABLE
        if handle_dependency:
            part.record_stream(get_accelerator().current_stream())
    self.complete = True
    if not handle_dependency:
        AllGatherCoalescedHandle.data_buffer.append([part])


def _reduce_scatter(tensors: Sequence[Any], group: Any = None) -> list[Any]:
    """Reduce and scatter: where tensors or padding lie between the parts, in a copy of all."""
    num_ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    parts = [math.ceil(each.numel() / num_ranks) for each in tensors]
    flat = tensors[0].view(-1)
    if len(tensors) > 1 or flat.numel() % num_ranks:
        paddings = [
            torch.empty(part * num_ranks - each.numel(), dtype=each.dtype, device=each.device)
            for part, each in zip(parts, tensors, strict=True)
            if part * num_ranks > each.numel()
        ]
        flat = torch.cat([each.view(-1) for each in tensors] + paddings)
    flat.div_(num_ranks)
    own = flat.narrow(0, rank * sum(parts), sum(parts))
    dist.reduce_scatter_fn(own, flat, group=group)
    outputs, offset = [], 0
    for part, each in zip(parts, tensors, strict=True):
        filled = max(0, min(part, each.numel() - rank * part))
        outputs.append(own.narrow(0, offset, filled))
        offset += part
    return outputs
