"""Trains modules without activations under ZeRO-3, and reports every mark and what it allocated.

A module hands an empty tensor on and, going back, leaves a whole gradient for each of its
parameters, and nothing else; so every byte beyond that is DeepSpeed's. A mark is a point at which
DeepSpeed's hooks act; the worker reports them in the order in which the real hooks fire.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.utils import set_z3_leaf_modules, z3_leaf_module, z3_leaf_parameter
from torch.utils.checkpoint import checkpoint

from planner.validate.collectives import join_fakes, settled_collectives
from planner.validate.ledger import Ledger

CASE_SECONDS = 60

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Touch(torch.autograd.Function):
    """``x`` again; the gradients of ``weights`` are new tensors of their sizes."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        """Keep the parameters, which costs nothing."""
        context.save_for_backward(*weights)
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Zeros for every weight, one after the other."""
        return gradient, *(torch.zeros_like(weight) for weight in context.saved_tensors)


class Owner(torch.nn.Module):
    """Parameters of the given sizes, used together."""

    def __init__(self, shapes: list[list[int]], dtype: torch.dtype) -> None:
        super().__init__()
        self.weights = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
        for place, weight in enumerate(self.weights):
            self.register_parameter(f"weight{place}", weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Touch them all."""
        return Touch.apply(x, *self.weights)


class Viewed(Owner):
    """What autograd saves are views, as of one expert of many in a tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Touch a view of each."""
        return Touch.apply(x, *(weight.view(-1) for weight in self.weights))


class Block(torch.nn.Module):
    """Owners and blocks in a row; without parameters of its own."""

    def __init__(self, parts: list[Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(make(part, dtype) for part in parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One after the other."""
        for part in self.parts:
            x = part(x)
        return x


class Checkpointed(Block):
    """A block that is computed again in the backward pass, hooks included."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """What Hugging Face's `GradientCheckpointingLayer` does."""
        return checkpoint(super().__call__, x, use_reentrant=False)


class Leaf(Block):
    """A block that DeepSpeed gathers as a whole."""


def make(part: Any, dtype: torch.dtype) -> torch.nn.Module:
    """``{kind: [shapes]}`` with own or viewed, ``{kind: [parts]}`` with one of the others."""
    ((kind, inner),) = part.items()
    kinds = {
        "own": Owner,
        "viewed": Viewed,
        "block": Block,
        "checkpoint": Checkpointed,
        "leaf": Leaf,
    }
    return kinds[kind](inner, dtype)


class FusedStandIn(torch.optim.Optimizer):
    """What FusedAdam allocates (ops/adam/fused_adam.py:149-157), without its CUDA kernel."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1e-3})

    def step(self, closure: Any = None, **_: Any) -> None:
        """Create the moments of what has a gradient."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if parameter.grad is not None and not state:
                    state["exp_avg"] = torch.zeros_like(parameter.data)
                    state["exp_avg_sq"] = torch.zeros_like(parameter.data)


class Recorder:
    """Reads the ledger after each mark: what is live, and the peak since the mark before."""

    def __init__(self, ledger: Ledger) -> None:
        self.books = ledger.books
        self.marks: list[list[Any]] = []
        self.places: dict[int, int] = {}

    def note(self, kind: str, parameters: Any = (), inside: Any = ()) -> None:
        """Add a mark; ``inside``: parameters of the module and of all modules inside."""
        own, whole = (sorted({self.places[id(p)] for p in some}) for some in (parameters, inside))
        self.marks.append([kind, own, self.books.now_bytes, self.books.peak_bytes, whole])
        self.books.peak_bytes = self.books.now_bytes

    def watch(self, leaves: list[torch.nn.Module]) -> None:
        """A leaf's gradients are marked when autograd leaves them, not when they are reduced."""
        for leaf in leaves:
            for parameter in leaf.parameters():
                parameter.register_post_accumulate_grad_hook(lambda p: self.note("gradient", [p]))

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Note a mark after each action of DeepSpeed's hooks."""
        coordinator, optimizer = PartitionedParameterCoordinator, DeepSpeedZeroOptimizer_Stage3
        fetch, release = coordinator.fetch_sub_module, coordinator.release_sub_module
        reduce = optimizer.reduce_ready_partitions_and_remove_grads
        coordinator.fetch_sub_module = self._after(fetch, "enter")
        coordinator.release_sub_module = self._after(release, "leave")
        optimizer.reduce_ready_partitions_and_remove_grads = self._after(reduce, "gradient")
        yield
        coordinator.fetch_sub_module, coordinator.release_sub_module = fetch, release
        optimizer.reduce_ready_partitions_and_remove_grads = reduce

    def _after(self, function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def noted(owner: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
            result = function(owner, target, *args, **kwargs)
            if kind != "gradient":
                way = "forward" if (args and args[0]) or kwargs.get("forward") else "backward"
                own = target.parameters(recurse=z3_leaf_module(target))
                self.note(f"{kind} {way}", own, target.parameters())
            elif not z3_leaf_parameter(target):
                self.note(kind, [target])
            return result

        return noted


def make_optimizer(case: dict[str, Any], params: Any) -> torch.optim.Optimizer:
    """The optimizer of a case."""
    name = case.get("optimizer", "stand_in")
    if name == "stand_in":
        return FusedStandIn(params)
    if name == "cpu_adam":
        return deepspeed.ops.adam.DeepSpeedCPUAdam(params)
    kernel = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}
    if name == "sgd":
        return torch.optim.SGD(params, lr=1e-3, momentum=0.9, **kernel[case["kernel"]])
    return torch.optim.AdamW(params, lr=1e-3, **kernel[case["kernel"]])


def build(case: dict[str, Any]) -> torch.nn.Module:
    """The model, whole or partitioned parameter by parameter as it is made."""
    dtype = DTYPES[case["precision"]]
    if not case.get("zero_init", False):
        return make(case["model"], dtype)
    with deepspeed.zero.Init(config_dict_or_path=case["config"], dtype=dtype):
        return make(case["model"], dtype)


def train(case: dict[str, Any], ledger: Ledger) -> list[list[Any]]:
    """Initialise and take the steps of the case."""
    recorder = Recorder(ledger)
    model = build(case)
    recorder.places = {id(p): place for place, p in enumerate(model.parameters())}
    recorder.watch(set_z3_leaf_modules(model, [Leaf], raise_if_not_found=False))
    recorder.note("made")
    params = split(model.parameters(), case.get("groups", "one"))
    optimizer = make_optimizer(case, params)
    engine, *_ = deepspeed.initialize(model=model, config=case["config"], optimizer=optimizer)
    recorder.note("initialised")
    accumulation = case["config"].get("gradient_accumulation_steps", 1)
    x = torch.ones(0, dtype=DTYPES[case["precision"]], requires_grad=True)
    with recorder.hooked():
        for _ in range(case.get("steps", 3) * accumulation):
            recorder.note("begin_forward")
            loss = engine(x).sum()
            recorder.note("begin_backward")
            engine.backward(loss)
            del loss
            recorder.note("end_backward")
            engine.step()
            if engine.micro_steps % accumulation == 0:
                recorder.note("step")
    return recorder.marks


def split(weights: Any, groups: str) -> list[dict[str, Any]]:
    """All in one group, or those with one dim in a second."""
    weights = list(weights)
    if groups == "one":
        return [{"params": weights}]
    return [
        {"params": [w for w in weights if len(getattr(w, "ds_shape", w.shape)) > 1]},
        {"params": [w for w in weights if len(getattr(w, "ds_shape", w.shape)) == 1]},
    ]


def run(case: dict[str, Any]) -> list[list[Any]]:
    """The marks of one case."""
    alone = "world" in case
    if alone:
        rank, world = case["rank"], case["world"]
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_SIZE": str(world)}
        join_fakes(rank=rank, num_ranks=world)
    if case["precision"] == "fp16":
        get_accelerator().is_fp16_supported = lambda: True  # it is slow on a CPU, but it works
        torch.isinf = lambda x: x.abs() == torch.inf  # as ATen does it, where the ledger sees it
    settled = contextlib.nullcontext() if alone else settled_collectives()
    with settled:
        deepspeed.init_distributed("gloo")
        with Ledger() as ledger:
            return train(case, ledger)


def import_late_modules() -> None:
    """What DeepSpeed imports while it initialises takes seconds: once, before children fork."""
    for name in ("deepspeed.runtime.zero.muon.muon_optimizer", "torch._dynamo"):
        importlib.import_module(name)
    gc.freeze()


def run_forked(case: dict[str, Any], output: Path) -> Any:
    """Run a case in a child, so that no case sees what another left in DeepSpeed's globals.

    The marks, or the traceback of what went wrong.
    """
    child = os.fork()
    if child == 0:
        signal.alarm(CASE_SECONDS)
        try:
            output.write_text(json.dumps(run(case)))
        except Exception:  # noqa: BLE001 - the parent shows it
            output.write_text(json.dumps(traceback.format_exc()))
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        return f"the case was stopped after {CASE_SECONDS} s"
    return json.loads(output.read_text())


def main() -> None:
    """Run the case, or each of the cases, of the command line and write the marks."""
    case, output = json.loads(sys.argv[1]), Path(sys.argv[2])
    if isinstance(case, list):
        import_late_modules()
        part = output.with_suffix(".part")
        marks = [run_forked(one, part) for one in case]
        output.write_text(json.dumps(marks))
    else:
        output.write_text(json.dumps(run(case)))
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
