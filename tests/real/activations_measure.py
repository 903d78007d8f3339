"""What a real transformers model allocates, allocation by allocation, beside what the tape says."""

import weakref
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from planner.activations.layers import Pass
from planner.activations.tape import Mark


class Allocation(NamedTuple):
    """One allocation and how much was live right after it."""

    size: int
    live: int


class Trace(TorchDispatchMode):
    """Writes down every storage at first sight; parameters and the batch must be seen before."""

    def __init__(self, known: list[torch.Tensor], *, echo: bool = False) -> None:
        super().__init__()
        self.allocations: list[Allocation] = []
        self.operations: list[str] = []
        self.live = 0
        self._echo = echo
        self._seen: dict[int, int] = {}
        for tensor in known:
            self._seen[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_iter(result):
            if isinstance(leaf, torch.Tensor):
                self._book(leaf.untyped_storage(), str(func))
        return result

    def _book(self, storage: torch.UntypedStorage, operation: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or not size:
            return
        self._seen[key] = size
        self.live += size
        self.allocations.append(Allocation(size, self.live))
        self.operations.append(operation)
        weakref.finalize(storage, self._strike, key, size)

    def _strike(self, key: int, size: int) -> None:
        self.live -= size
        self._seen.pop(key, None)


def replay(passes: list[Pass]) -> list[Allocation]:
    """The tape's allocations of a whole micro-batch; gradients of parameters stay alive."""
    live = 0
    result = []
    for run, events in [(run, run.forward) for run in passes] + [
        (run, run.backward) for run in reversed(passes)
    ]:
        sizes = run.machine.sizes
        previous = 0
        for event in events:
            if isinstance(event, Mark):
                if event.kind == "gradient":
                    live += sizes[-previous]
            elif event > 0:
                live += sizes[event]
                result.append(Allocation(sizes[event], live))
            else:
                live -= sizes[-event]
            previous = event if isinstance(event, int) else 0
    return result


def large(allocations: list[Allocation], threshold: int) -> list[Allocation]:
    """Those above the size of index tensors and scalars."""
    return [entry for entry in allocations if entry.size > threshold]
