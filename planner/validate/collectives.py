"""The process group of a rank on CPUs, made repeatable.

gloo's threads hold on to the tensors of a collective for a moment after it is done, so that memory
would depend on who is faster. A collective here returns when they have let go; those that run on
are watched when they are waited for. Fake collectives return at once.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_iter

WATCHED = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_to_all",
    "all_to_all_single",
    "broadcast",
    "recv",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "send",
)
PATIENCE_SECONDS = 0.2
"""A tensor that somebody else keeps is not waited for any longer."""


def join_fakes(*, rank: int, num_ranks: int) -> None:
    """Be one rank of many of which no other is there."""
    coordinator: Any = import_module("deepspeed.runtime.zero.partitioned_param_coordinator")
    coordinator.assert_ints_same_as_other_ranks = bool  # nobody is there to compare
    backend: Any = import_module("deepspeed.comm.torch")
    backend.build_shm_op = lambda: None  # it would wait for other ranks on this machine
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=num_ranks)


@contextmanager
def settled_collectives() -> Iterator[None]:
    """Inside, collectives that are over hold nothing."""
    methods = {name: getattr(torch.distributed, name) for name in WATCHED}
    for name, method in methods.items():
        setattr(torch.distributed, name, _settled(method))
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(torch.distributed, name, method)


@contextmanager
def agreeing_fakes() -> Iterator[None]:
    """Inside, fake collectives answer as if all ranks sent the same; copies are those of gloo.

    torch's own leave their outputs as they were made, in which gradients may overflow. gloo
    reduces and scatters in a copy of what it is given.
    """
    names = ("all_gather_into_tensor", "reduce_scatter_tensor")
    gather, scatter = methods = [getattr(torch.distributed, name) for name in names]

    def gathered(output_tensor: Any, input_tensor: Any, **options: Any) -> Any:
        work = gather(output_tensor, input_tensor, **options)
        for part in output_tensor.view(-1, input_tensor.numel()):
            if part.data_ptr() != input_tensor.data_ptr():  # ZeRO-3 gathers into what it sends from
                part.copy_(input_tensor.view(-1))
        return work

    def scattered(output_tensor: Any, input: Any, **options: Any) -> Any:  # noqa: A002 - torch's
        input.clone()
        work = scatter(output_tensor, input, **options)
        output_tensor.view(-1).copy_(input.view(-1)[: output_tensor.numel()])
        return work

    fakes: tuple[Any, Any] = (gathered, scattered)
    for name, method in zip(names, fakes, strict=True):
        setattr(torch.distributed, name, method)
    try:
        yield
    finally:
        for name, method in zip(names, methods, strict=True):
            setattr(torch.distributed, name, method)


def _settled(collective: Callable[..., Any]) -> Callable[..., Any]:
    def settled(*args: Any, **kwargs: Any) -> Any:
        holders = _holders(args, kwargs)
        work = collective(*args, **kwargs)
        if work is not None:
            return _Work(work, holders)
        _settle(holders)
        return None

    return settled


class _Work:
    """A collective that runs on; what it is asked, the real one answers."""

    def __init__(self, work: Any, holders: list[tuple[Any, int]]) -> None:
        self._work, self._holders = work, holders

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

    def wait(self, *args: Any) -> Any:
        """Wait until it is done, and forgotten."""
        done = self._work.wait(*args)
        holders, self._holders = self._holders, []
        _settle(holders)
        return done


def _holders(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[Any, int]]:
    """The storages of a call, and how many hold each beforehand."""
    leaves = tree_iter((args, dict(kwargs)))
    storages = [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return [(storage, _count(storage)) for storage in storages]


def _count(storage: Any) -> int:
    return int(torch._C._storage_Use_Count(storage._cdata))


def _settle(holders: list[tuple[Any, int]]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(_count(storage) > count for storage, count in holders):
        if time.monotonic() > deadline:
            return
        time.sleep(0.0005)
