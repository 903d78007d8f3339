"""What two sections of a file both say must be the same; what one leaves open the other settles."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from planner.spec.deepspeed_read import Said
from planner.spec.degrees import Degrees
from planner.spec.faults import Document, Faults
from planner.spec.layout import Layout, ZeroStage
from planner.spec.training import OptimizerKernel, OptimizerName, Precision, Training

_OPTIMIZERS: Mapping[str, OptimizerName] = {
    "adam": "adamw",
    "adamw": "adamw",
    "lion": "lion",
    "muon": "muon",
    "sgd": "sgd",
}
"""Names in DeepSpeed's file, in lower case (runtime/engine.py:2486-2545), with the same memory."""


def agree_on_precision(
    document: Document, training: Training, said: Said, faults: Faults
) -> Training:
    """Settle ``training.precision`` with ``bf16.enabled`` and ``fp16.enabled``."""
    enabled = [key for key in ("bf16", "fp16") if said.value(key, "enabled") is True]
    if len(enabled) > 1:
        message = f"bf16 is enabled as well ({said.where('bf16', 'enabled')}); keep one"
        said.fault(faults, ("fp16", "enabled"), message)
        return training
    given = "precision" in document.data["training"]
    theirs = cast("Precision", enabled[0]) if enabled else _silent_precision(training, said)
    if theirs is None or theirs == training.precision:
        return training
    if not given and enabled:
        return replace(training, precision=theirs)
    where = said.where(enabled[0] if enabled else training.precision, "enabled")
    ours = f"{training.precision}{'' if given else ' (not written, so assumed)'}"
    message = f"{ours}, but {where} makes it {theirs}; write the same in both"
    faults.add(document, ("training", "precision"), message)
    return training


def _silent_precision(training: Training, said: Said) -> Precision | None:
    """What DeepSpeed makes of a section that enables nothing: None if that says nothing.

    The section in our file is only a part, so silence says nothing there; in the file that a run
    will get it means fp32.
    """
    ours = training.precision
    if said.value(ours, "enabled") is False:
        return "fp32"
    if said.file is None or said.is_auto(ours, "enabled"):
        return None
    return "fp32"


def agree_on_stage(document: Document, degrees: Degrees, said: Said, faults: Faults) -> ZeroStage:
    """Settle ``layout.zero_stage`` with ``zero_optimization.stage``."""
    theirs = said.value("zero_optimization", "stage")
    if theirs is None and said.file is not None:
        theirs = 0  # that is what the file will do
    ours = degrees.given.get("zero_stage")
    if ours is None or theirs is None or ours == theirs:
        return cast("ZeroStage", ours if ours is not None else theirs or 0)
    where = said.where("zero_optimization", "stage")
    message = f"{ours}, but {where} says {theirs}; write the same in both, or only there"
    faults.add(document, ("layout", "zero_stage"), message)
    return cast("ZeroStage", ours)


def agree_on_degrees(document: Document, layout: Layout, said: Said, faults: Faults) -> None:
    """Check what DeepSpeed's own keys say about tensor, expert and sequence parallelism."""
    keys = said.keys
    autoep, autotp = keys.expert_parallel, keys.tensor_parallel
    experts = autoep.autoep_size if autoep is not None and autoep.enabled else None
    tensors = autotp.autotp_size or None if autotp is not None else None
    claims = (
        ("tp", tensors, ("tensor_parallel", "autotp_size")),
        ("ep", experts, ("expert_parallel", "autoep_size")),
        ("sp", keys.sequence_parallel_size, ("sequence_parallel_size",)),
    )
    for axis, theirs, at in claims:
        ours = getattr(layout, axis)
        if theirs is not None and theirs != ours:
            message = f"{ours}, but {said.where(*at)} says {theirs}; write the same in both"
            faults.add(document, ("layout", axis), message)


def agree_on_optimizer(
    document: Document, training: Training, said: Said, faults: Faults
) -> Training:
    """Settle ``training.optimizer`` and its kernel with ``optimizer``."""
    theirs = said.keys.optimizer
    if theirs is None:
        return training
    name = _OPTIMIZERS.get(theirs.type.lower())
    if name is None:
        message = f"{theirs.type!r} is not modelled; choose from Adam, AdamW, Lion, Muon, SGD"
        said.fault(faults, ("optimizer", "type"), message)
        return training
    kernel = _kernel(name, theirs.params)
    claims = {"optimizer": name, "optimizer_kernel": kernel}
    for key in claims.keys() & document.data["training"].keys():
        ours = getattr(training, key)
        if ours != claims[key]:
            where = said.where("optimizer")
            message = f"{ours}, but {where} makes it {claims[key]}; write the same in both"
            faults.add(document, ("training", key), message)
    return replace(training, optimizer=name, optimizer_kernel=kernel)


def _kernel(name: OptimizerName, params: Mapping[str, Any]) -> OptimizerKernel:
    """FusedAdam and FusedLion, unless torch's own are asked for (runtime/engine.py:2377-2409)."""
    torch = params.get("torch_adam") is True or name == "sgd"
    if not torch or params.get("fused") is True:
        return "fused"
    return "loop" if params.get("foreach") is False else "foreach"


def agree_on_batch(
    document: Document, training: Training, layout: Layout | None, said: Said, faults: Faults
) -> Training:
    """Settle the sizes of the batch with DeepSpeed's three keys (runtime/config.py:613-655)."""
    training = _micro_batch(document, training, said, faults)
    training = _global_batch(document, training, said, faults)
    steps = said.keys.gradient_accumulation_steps
    if layout is None:
        return training
    replicas = layout.dp * training.micro_batch_size
    if training.global_batch_size is None:
        return replace(training, global_batch_size=replicas * steps) if steps else training
    _check_product(document, training, layout, said, faults)
    return training


def _micro_batch(document: Document, training: Training, said: Said, faults: Faults) -> Training:
    theirs = said.keys.train_micro_batch_size_per_gpu
    if theirs is None or theirs == training.micro_batch_size:
        return training
    if "micro_batch_size" not in document.data["training"]:
        return replace(training, micro_batch_size=theirs)
    where = said.where("train_micro_batch_size_per_gpu")
    message = f"{training.micro_batch_size}, but {where} says {theirs}; write the same in both"
    faults.add(document, ("training", "micro_batch_size"), message)
    return training


def _global_batch(document: Document, training: Training, said: Said, faults: Faults) -> Training:
    theirs = said.keys.train_batch_size
    if theirs is None or theirs == training.global_batch_size:
        return training
    if training.global_batch_size is None:
        return replace(training, global_batch_size=theirs)
    where = said.where("train_batch_size")
    message = f"{training.global_batch_size}, but {where} says {theirs}; write the same in both"
    faults.add(document, ("training", "global_batch_size"), message)
    return training


def _check_product(
    document: Document, training: Training, layout: Layout, said: Said, faults: Faults
) -> None:
    """``global_batch_size = micro_batch_size * dp * steps``."""
    assert training.global_batch_size is not None
    replicas = layout.dp * training.micro_batch_size
    steps, rest = divmod(training.global_batch_size, replicas)
    product = f"micro_batch_size {training.micro_batch_size} x dp {layout.dp} = {replicas}"
    at = ("training", "global_batch_size")
    if rest or not steps:
        near = [max(1, steps) * replicas, (max(1, steps) + 1) * replicas]
        message = f"{training.global_batch_size} is no multiple of {product}; choose e.g. {near}"
        faults.add(document, at, message)
        return
    theirs = said.keys.gradient_accumulation_steps
    if theirs is not None and theirs != steps:
        where = said.where("gradient_accumulation_steps")
        message = (
            f"{training.global_batch_size} / ({product}) = {steps} micro-steps, but {where} says "
            f"{theirs}; write {steps} there or {replicas * theirs} here"
        )
        faults.add(document, at, message)


def check_sequence(document: Document, training: Training, layout: Layout, faults: Faults) -> None:
    """Ulysses cuts the sequence in equal pieces."""
    if training.sequence_length % layout.sp:
        more = (training.sequence_length // layout.sp + 1) * layout.sp
        message = (
            f"{training.sequence_length} is no multiple of layout.sp = {layout.sp}, whose ranks "
            f"share a sequence; write {more}, or another sp"
        )
        faults.add(document, ("training", "sequence_length"), message)
    if training.sequence_parallel:
        _check_sequence_parallel(document, training, layout, faults)


def _check_sequence_parallel(
    document: Document, training: Training, layout: Layout, faults: Faults
) -> None:
    """Megatron-LM's arguments.py, ``--sequence-parallel``, and equal pieces."""
    at = ("training", "sequence_parallel")
    if training.implementation != "megatron":
        message = (
            f"{training.implementation}'s layers have none; write implementation: megatron, or use "
            "layout.sp"
        )
        faults.add(document, at, message)
    elif layout.tp == 1:
        faults.add(document, at, "needs tensor parallelism; write layout.tp: 2 or more, or false")
    elif training.sequence_length % layout.tp:
        more = (training.sequence_length // layout.tp + 1) * layout.tp
        message = (
            f"{training.sequence_length} tokens are no multiple of layout.tp = {layout.tp}; write "
            f"sequence_length: {more}, or another tp"
        )
        faults.add(document, at, message)
