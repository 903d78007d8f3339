"""Trains linear layers as checkpoints of DeepSpeed's own and reports what each allocated."""

import contextlib
import json
import sys
import weakref
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.activation_checkpointing import checkpointing
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes

from planner.validate.ledger import Ledger


class Mpu:
    """What DeepSpeed asks about tensor parallelism."""

    def __init__(self, tp: int) -> None:
        self.tp = tp
        self.group = torch.distributed.new_group(list(range(tp)))

    def get_tensor_model_parallel_rank(self) -> int:
        """Of this process."""
        return 0

    def get_tensor_model_parallel_world_size(self) -> int:
        """Its degree."""
        return self.tp

    def get_tensor_model_parallel_group(self) -> Any:
        """The ranks that share a tensor."""
        return self.group


class Stream:
    """A second stream, on which everything is done at once."""

    def wait_stream(self, _: Any) -> None:
        """Nothing is under way."""

    def wait_event(self, _: Any) -> None:
        """Nothing is under way."""

    def synchronize(self) -> None:
        """Nothing is under way."""

    def record_event(self) -> "Stream":
        """Stand for an event, too."""
        return self

    def query(self) -> bool:
        """All is done."""
        return True


class DeviceLedger(Ledger):
    """Leaves out what was pinned: that is the host's."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: set[int] = set()

    def _book(self, tensor: Any) -> None:
        if tensor.untyped_storage()._cdata not in self.pinned:
            super()._book(tensor)

    def pin(self, tensor: torch.Tensor, **_: Any) -> torch.Tensor:
        """Leave a tensor out of the books that `unseen` has made."""
        storage = tensor.untyped_storage()
        self.pinned.add(storage._cdata)
        weakref.finalize(storage, self.pinned.discard, storage._cdata)
        return tensor


def pretend_device(ledger: DeviceLedger) -> None:
    """Let DeepSpeed take the CPU for a device beside a host, with streams and pinned memory."""
    accelerator = get_accelerator()
    kind: Any = type(accelerator)
    kind.Stream = Stream
    kind.is_synchronized_device = lambda _: False
    kind.on_accelerator = lambda _, __: True
    kind.current_stream = lambda *_: Stream()
    kind.stream = lambda *_: contextlib.nullcontext()
    kind.pin_memory = lambda _, tensor, **facts: ledger.pin(tensor, **facts)
    engine: Any = checkpointing._ActivationOffloadEngine
    make = engine._empty_cpu_like

    def unseen(self: Any, tensor: torch.Tensor) -> Any:
        with _disable_current_modes():
            return make(self, tensor)

    engine._empty_cpu_like = unseen
    torch.Tensor.record_stream = lambda *_: None  # type: ignore[method-assign]


def run(case: dict[str, Any]) -> list[tuple[int, int]]:
    """End and peak of each layer's forward, then of its backward up to its gradient."""
    checkpointing.reset()
    checkpointing.configure(Mpu(case["tp"]), **case["keys"])
    size = case["hidden"]
    layers = [torch.nn.Linear(size, size, bias=False) for _ in range(case["layers"])]
    ledger = DeviceLedger()
    books = ledger.books
    if case["pretend"]:
        pretend_device(ledger)
    readings = []
    with ledger:
        hidden = torch.zeros(*case["shape"], size, requires_grad=True) + 0
        for layer in layers:
            layer.weight.detach()
        gradient = torch.zeros_like(hidden)
        base = books.peak_bytes = books.now_bytes

        def read(_: Any = None) -> None:
            readings.append((books.now_bytes - base, books.peak_bytes - base))
            books.peak_bytes = books.now_bytes

        for layer in layers:
            layer.weight.register_post_accumulate_grad_hook(read)
            hidden = checkpointing.checkpoint(layer, hidden)
            read()
        hidden.backward(gradient)
    return readings


def main() -> None:
    """Run the cases one after the other."""
    cases = json.loads(sys.argv[1])
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    deepspeed.init_distributed("fake")
    Path(sys.argv[2]).write_text(json.dumps([run(case) for case in cases]))


if __name__ == "__main__":
    main()
