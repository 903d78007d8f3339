"""The optimizers that a plan names, on the parameter groups that it names."""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.ops.lion import FusedLion

from planner.errors import LaunchError
from planner.spec.training import Training
from planner.validate.replaced import replaced

LEARNING_RATE = 1e-4
KERNELS: dict[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"foreach": False},
}


class FusedAdamOnCpu(FusedAdam):
    """DeepSpeed's FusedAdam without its CUDA kernel; it allocates the same.

    DeepSpeed chooses by this class (runtime/engine.py:2555-2609 of 0.19.8). What its step
    allocates: ops/adam/fused_adam.py:149-157.
    """

    def __init__(self, params: Any, **_: Any) -> None:
        torch.optim.Optimizer.__init__(self, params, {"lr": LEARNING_RATE, "weight_decay": 0.0})

    def step(self, closure: Callable[[], Any] | None = None, **_: Any) -> None:
        """Update what has a gradient, in place, with torch's own fused kernel."""
        del closure
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: Any, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(weight.data)
            state["exp_avg_sq"] = torch.zeros_like(weight.data)
        with torch.no_grad():
            torch._fused_adamw_(
                [weight.data],
                [weight.grad],
                [state["exp_avg"]],
                [state["exp_avg_sq"]],
                [],
                [state["step"].add_(1)],
                lr=group["lr"],
                beta1=0.9,
                beta2=0.999,
                weight_decay=group["weight_decay"],
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )


class FusedLionOnCpu(FusedLion):
    """DeepSpeed's FusedLion without its CUDA kernel; it allocates the same (fused_lion.py:99)."""

    def __init__(self, params: Any) -> None:
        torch.optim.Optimizer.__init__(self, params, {"lr": LEARNING_RATE, "weight_decay": 0.0})

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Update what has a gradient."""
        del closure
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: Any, group: dict[str, Any]) -> None:
        """With betas 0.9 and 0.99, in place: the direction takes the gradient's place."""
        state, direction = self.state[weight], weight.grad
        if not state:
            state["exp_avg"] = torch.zeros_like(weight.data)
        moment = state["exp_avg"]
        with torch.no_grad():
            direction.mul_(0.1).add_(moment, alpha=0.9)
            # 0.9 m + 0.1 (0.9 m + 0.1 g) = 0.99 m + 0.01 g
            moment.mul_(0.9).add_(direction, alpha=0.1)
            weight.data.add_(direction.sign_(), alpha=-group["lr"])


def parameter_groups(parameters: Iterable[Any], training: Training) -> list[dict[str, Any]]:
    """All in one group, or biases and norms in a second without decay.

    A parameter that ZeRO-3 has partitioned keeps its shape as ``ds_shape``.
    """
    weights = [weight for weight in parameters if weight.requires_grad]
    if training.parameter_groups == "one":
        return [{"params": weights}]
    wide = [weight for weight in weights if len(getattr(weight, "ds_shape", weight.shape)) > 1]
    thin = [weight for weight in weights if len(getattr(weight, "ds_shape", weight.shape)) <= 1]
    groups: list[dict[str, Any]] = [{"params": wide}, {"params": thin, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def start(
    model: Any,
    groups: Iterable[dict[str, Any]],
    training: Training,
    *,
    on_host: bool = False,
    **others: Any,
) -> Any:
    """The engine of ``deepspeed.initialize`` around the model and the planned optimizer.

    Muon is the engine's to make, since it tags what is a matrix (deepspeed/__init__.py:357).
    """
    if training.optimizer == "muon":
        if _device_adam() is not FusedAdam:
            # Under a ledger the compiler stumbles over the ledger's own books.
            torch.compiler.set_stance("force_eager")
        own = replaced(deepspeed.ops.adam, FusedAdam=_device_adam())
        with own:
            return deepspeed.initialize(model=model, model_parameters=list(groups), **others)[0]
    optimizer = make_optimizer(groups, training, on_host=on_host)
    return deepspeed.initialize(model=model, optimizer=optimizer, **others)[0]


def make_optimizer(
    groups: Iterable[dict[str, Any]], training: Training, *, on_host: bool = False
) -> Any:
    """The planned optimizer; LaunchError for one that this machine cannot run.

    ``on_host``: the optimizer is offloaded.
    """
    groups = list(groups)
    if training.optimizer == "adamw":
        if training.optimizer_kernel == "fused":
            return _fused(groups, on_host=on_host)
        return torch.optim.AdamW(groups, lr=LEARNING_RATE, **KERNELS[training.optimizer_kernel])
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=LEARNING_RATE,
            momentum=training.momentum,
            **KERNELS[training.optimizer_kernel],
        )
    if training.optimizer == "lion":
        return _lion(groups)
    if training.optimizer == "adamw_8bit":
        return _eight_bit(groups)
    raise AssertionError(training.optimizer)


def _eight_bit(groups: list[dict[str, Any]]) -> Any:
    try:
        optimizers = import_module("bitsandbytes.optim")
    except ModuleNotFoundError as error:
        raise LaunchError(
            "training.optimizer: adamw_8bit is run by bitsandbytes, which is not installed here; "
            "install it, or take another optimizer"
        ) from error
    return optimizers.AdamW8bit(groups, lr=LEARNING_RATE)


def _lion(groups: list[dict[str, Any]]) -> Any:
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() == "cuda":
        return FusedLion(groups, lr=LEARNING_RATE)
    return FusedLionOnCpu(groups)


def _fused(groups: list[dict[str, Any]], *, on_host: bool) -> Any:
    """On the host DeepSpeed's own, where that is another memory than the device's."""
    from deepspeed.accelerator import get_accelerator

    device = get_accelerator().device_name()
    if on_host and device != "cpu":
        return DeepSpeedCPUAdam(groups, lr=LEARNING_RATE)
    if device == "cuda":
        return FusedAdam(groups, lr=LEARNING_RATE)
    return FusedAdamOnCpu(groups)


def _device_adam() -> Any:
    from deepspeed.accelerator import get_accelerator

    return FusedAdam if get_accelerator().device_name() == "cuda" else FusedAdamOnCpu
