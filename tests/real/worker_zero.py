"""Trains parameters without activations under DeepSpeed, and reports what each phase allocated.

The model is a chain of `Touch`: it hands a scalar on and, going back, leaves a whole gradient for
its parameter, in reverse order, and nothing else. So every byte beyond that is DeepSpeed's.
"""

import contextlib
import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.moe.layer import MoE
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from deepspeed.ops.adam import FusedAdam
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam  # noqa: F401 (slow: once)
from deepspeed.utils import groups

from planner.validate.collectives import join_fakes, settled_collectives
from planner.validate.ledger import Ledger

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Touch(torch.autograd.Function):
    """``x`` again; the gradient of ``weight`` is a new tensor of its size."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Keep the parameter, which costs nothing."""
        context.save_for_backward(weight)
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A gradient of zeros for the weight."""
        (weight,) = context.saved_tensors
        return gradient, torch.zeros_like(weight)


class Chain(torch.nn.Module):
    """Parameters of the given shapes, touched one after the other."""

    def __init__(self, shapes: list[list[int]], dtype: torch.dtype) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(
            torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pass through all parameters in order."""
        for weight in self.weights:
            x = Touch.apply(x, weight)
        return x.sum()


class ExpertsMark(MoE):
    """What tells the engine that there are experts; their parameters are the chain's own."""

    def __init__(self, ep: int) -> None:
        torch.nn.Module.__init__(self)
        self.num_experts = self.ep = ep

    def set_deepspeed_parallelism(self, *_: Any, **__: Any) -> None:
        """Create the experts' process groups."""
        groups._create_expert_and_data_parallel(self.ep)


def mark_experts(model: Chain, experts: list[int], ep: int) -> None:
    """Make some of the parameters those of experts."""
    if not experts:
        return
    model.mark = ExpertsMark(ep)
    for index in experts:
        model.weights[index].allreduce = False
        model.weights[index].group_name = f"ep_size_{ep}"


class FusedStandIn(FusedAdam):  # type: ignore[misc]
    """What FusedAdam allocates (ops/adam/fused_adam.py:149-157), without its CUDA kernel."""

    def __init__(self, params: Any) -> None:
        torch.optim.Optimizer.__init__(self, params, {"lr": 1e-3})

    def step(self, closure: Any = None, **_: Any) -> None:
        """Create the moments of what has a gradient."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if parameter.grad is not None and not state:
                    state["exp_avg"] = torch.zeros_like(parameter.data)
                    state["exp_avg_sq"] = torch.zeros_like(parameter.data)


def make_optimizer(name: str, kernel: str, params: Any) -> torch.optim.Optimizer:
    """The optimizer of a case, on the parameter groups it is given."""
    kernels = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}
    if name == "adamw":
        if kernel == "stand_in":
            return FusedStandIn(params)
        return torch.optim.AdamW(params, lr=1e-3, **kernels[kernel])
    if name == "sgd":
        return torch.optim.SGD(params, lr=1e-3, momentum=0.9, **kernels[kernel])
    raise ValueError(name)


def split(weights: Any, groups: str) -> list[dict[str, Any]]:
    """All in one group, or those with one dim in a second."""
    if groups == "one":
        return [{"params": list(weights), "name": "all"}]
    return [
        {"params": [w for w in weights if w.ndim > 1], "name": "decay"},
        {"params": [w for w in weights if w.ndim == 1], "weight_decay": 0.0, "name": "rest"},
    ]


def accept_fp16() -> None:
    """Let DeepSpeed run fp16 on the CPU, which its accelerator class says it cannot."""
    get_accelerator().is_fp16_supported = lambda: True


def train(case: dict[str, Any], ledger: Ledger) -> None:
    """Initialise and take the steps of the case, each phase read on its own."""
    accept_fp16()
    dtype = DTYPES[case["precision"]]
    model = Chain(case["shapes"], dtype)
    mark_experts(model, case.get("experts", []), case.get("ep", 1))
    phase = ledger.books.phase
    with phase("init"):
        params = split(model.weights, case.get("groups", "one"))
        if case.get("experts"):
            params = split_params_into_different_moe_groups_for_optimizer(params)
        engine, *_ = deepspeed.initialize(
            model=model,
            config=case["config"],
            model_parameters=params,
            optimizer=lambda groups: make_optimizer(
                case.get("optimizer", "adamw"), case.get("kernel", "fused"), groups
            ),
        )
    x = torch.ones(1, dtype=dtype, requires_grad=True)
    for step in range(case.get("steps", 2)):
        for micro_step in range(case["config"]["gradient_accumulation_steps"]):
            with phase(f"{step}.{micro_step}.forward"):
                loss = engine(x)
            with phase(f"{step}.{micro_step}.backward"):
                engine.backward(loss)
                del loss
            if micro_step + 1 < case["config"]["gradient_accumulation_steps"]:
                engine.step()
        with phase(f"{step}.step"):
            engine.step()


def run(case: dict[str, Any], backend: str) -> list[dict[str, Any]]:
    """Train one case as the rank that the environment names; the readings of its phases.

    With ``fake`` collectives return at once and no other rank is needed.
    """
    if backend == "fake":
        join_fakes(rank=int(os.environ["RANK"]), num_ranks=int(os.environ["WORLD_SIZE"]))
    settled = contextlib.nullcontext() if backend == "fake" else settled_collectives()
    with settled:
        deepspeed.init_distributed(backend)
        with Ledger() as ledger:
            train(case, ledger)
    return [reading._asdict() for reading in ledger.books.readings]


def run_apart(case: dict[str, Any], rank: int, output: Path) -> None:
    """Run one rank with fake collectives in a child process, which needs no imports of its own."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(case["ranks"])}
        output.write_text(json.dumps(run(case, "fake")))
    except Exception:  # noqa: BLE001  whatever it is, the test is to show it
        output.write_text(json.dumps(traceback.format_exc()))
    finally:
        os._exit(0)  # the parent's own clean-up is not the child's


def run_all(cases: list[dict[str, Any]], folder: Path) -> list[list[Any]]:
    """All ranks of all cases, one after the other; a text for a rank that failed."""
    results = []
    for number, case in enumerate(cases):
        outputs = [folder / f"{number}.{rank}.json" for rank in range(case["ranks"])]
        for rank, output in enumerate(outputs):
            run_apart(case, rank, output)
        results.append([json.loads(output.read_text()) for output in outputs])
    return results


def main() -> None:
    """Run the case of the command line on this rank, or a list of cases on fake ranks."""
    case, output = json.loads(sys.argv[1]), Path(sys.argv[2])
    gc.freeze()  # the ledger collects garbage twice a phase: what the imports made need not be seen
    result = run(case, "gloo") if isinstance(case, dict) else run_all(case, output.parent)
    output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
