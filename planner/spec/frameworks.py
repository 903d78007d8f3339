"""``engine:`` of a file, the sections of engines that are not DeepSpeed, and ``adapters:``."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from planner.spec.adapters import Adapters
from planner.spec.door import check, listed, suggest
from planner.spec.engines import EngineName, Fsdp
from planner.spec.faults import Document, Faults, show
from planner.spec.layout import Layout
from planner.spec.megatron import Megatron
from planner.spec.training import Training

ENGINES: tuple[EngineName, ...] = get_args(EngineName)
SECTIONS = ("deepspeed", "megatron", "fsdp")
"""Engines that have a section of their own."""

_AXES: Mapping[EngineName, tuple[str, ...]] = {
    "megatron": ("tp", "pp", "ep"),
    "fsdp": (),
    "ddp": (),
}
"""Of engines that do not have every axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """Who trains, and how."""

    engine: EngineName = "deepspeed"
    megatron: Megatron = field(default_factory=Megatron)
    fsdp: Fsdp = field(default_factory=Fsdp)
    adapters: Adapters | None = None


def axes(engine: EngineName) -> tuple[str, ...]:
    """What an engine cuts over besides dp."""
    return _AXES.get(engine, ("tp", "pp", "ep", "sp"))


def read_framework(document: Document, faults: Faults) -> Framework:
    """Read the sections; those with faults, which are booked, are as if they were not there."""
    data = document.data
    engine = data.get("engine", "deepspeed")
    if engine not in ENGINES:
        known: list[str] = list(ENGINES)
        mend = suggest(engine, known) if isinstance(engine, str) else listed(known)
        faults.add(document, ("engine",), f"{show(engine)} is not an engine; {mend}")
        engine = next((name for name in SECTIONS if name in data), "deepspeed")
    for name in SECTIONS:
        if name in data and name != engine:
            message = f"engine is {engine}; write `engine: {name}`, or leave this section out"
            faults.add(document, (name,), message)
    megatron = check(document, ("megatron",), data.get("megatron"), Megatron, faults)
    fsdp = check(document, ("fsdp",), data.get("fsdp"), Fsdp, faults)
    adapters = None
    if "adapters" in data:
        adapters = check(document, ("adapters",), data["adapters"], Adapters, faults)
    return Framework(
        engine=engine,
        megatron=megatron or Megatron(),
        fsdp=fsdp or Fsdp(),
        adapters=adapters,
    )


def agree_on_training(
    document: Document, framework: Framework, training: Training, faults: Faults
) -> Training:
    """Megatron runs its own layers, with a loss and an optimizer of its own."""
    if framework.engine != "megatron":
        return training
    given = document.data["training"]
    fixed = {
        "implementation": ("megatron", "leave it out"),
        "loss": ("eager", "write `megatron: {loss: ...}` instead"),
        "optimizer": ("adamw", "write adamw"),
    }
    for key, (value, mend) in fixed.items():
        if key in given and given[key] != value:
            message = f"{show(given[key])}, which engine megatron has not; {mend}"
            faults.add(document, ("training", key), message)
    return replace(training, implementation="megatron")


def agree_on_layout(
    document: Document, framework: Framework, training: Training, layout: Layout, faults: Faults
) -> Framework:
    """Check a layout against the engine, and settle what Megatron calls by its own names."""
    if framework.engine == "deepspeed":
        return framework
    _check_axes(document, framework, layout, faults)
    if framework.engine != "megatron":
        return framework
    _check_megatron(document, framework, layout, faults)
    given = document.data.get("megatron") or {}
    ours: dict[str, Any] = {
        "expert_model_parallel_size": layout.ep,
        "sequence_parallel": training.sequence_parallel,
    }
    for key, value in ours.items():
        if key in given and given[key] != value:
            at = "layout.ep" if key.startswith("expert") else "training.sequence_parallel"
            message = f"{show(given[key])}, but {at} is {show(value)}; write the same in both"
            faults.add(document, ("megatron", key), message)
    etp = given.get("expert_tensor_parallel_size", layout.tp)
    return replace(
        framework, megatron=replace(framework.megatron, **ours, expert_tensor_parallel_size=etp)
    )


def _check_axes(document: Document, framework: Framework, layout: Layout, faults: Faults) -> None:
    engine = framework.engine
    for axis in ("tp", "pp", "ep", "sp"):
        degree = getattr(layout, axis)
        if degree > 1 and axis not in axes(engine):
            message = (
                f"{degree}, but {axis} is not planned for {engine}; write {axis}: 1, or an engine "
                "that has it: " + ("deepspeed" if axis == "sp" else "deepspeed, megatron")
            )
            faults.add(document, ("layout", axis), message)
    if layout.zero_stage:
        message = f"{layout.zero_stage}, but {engine} has no ZeRO; " + _INSTEAD[engine]
        faults.add(document, ("layout", "zero_stage"), message)
    if engine == "fsdp" and layout.dp % framework.fsdp.replicas:
        message = f"{framework.fsdp.replicas} does not divide dp = {layout.dp}"
        faults.add(document, ("fsdp", "replicas"), message + "; write a divisor of it")


def _check_megatron(
    document: Document, framework: Framework, layout: Layout, faults: Faults
) -> None:
    """What Megatron's own switches must agree with, and what it has not."""
    if framework.adapters is not None:
        message = (
            "are not planned for engine megatron; write engine: fsdp or ddp, or leave them out"
        )
        faults.add(document, ("adapters",), message)
    told = framework.megatron.blocks_per_stage
    if told and len(told) != layout.pp:
        message = f"names {len(told)} stages, but layout.pp is {layout.pp}; write a count for each"
        faults.add(document, ("megatron", "blocks_per_stage"), message)
    cut = layout.ep * framework.megatron.expert_tensor_parallel_size
    if layout.dp * layout.tp % cut:
        message = (
            f"times ep {layout.ep} does not divide dp {layout.dp} x tp {layout.tp}, over whose "
            "ranks experts are spread; write 1"
        )
        faults.add(document, ("megatron", "expert_tensor_parallel_size"), message)


_INSTEAD: Mapping[EngineName, str] = {
    "megatron": "write 0, and `megatron: {use_distributed_optimizer: true}` for what stage 1 does",
    "fsdp": "write 0: FSDP shards everything, like stage 3",
    "ddp": "write 0, or `engine: deepspeed`",
}
