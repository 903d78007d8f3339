"""Runs of DeepSpeed: transformers' models on ZeRO, and Megatron-like ones with TP and PP."""

from dataclasses import replace
from typing import Any, cast

from planner.accuracy.case import Case, UnsupportedError
from planner.accuracy.entries import Entry, Section, whole
from planner.accuracy.translate.common import Reader
from planner.accuracy.translate.single import training_of
from planner.accuracy.translate.tuning import tuning_of
from planner.spec.deepspeed import (
    ActivationCheckpointing,
    DeepSpeed,
    OffloadOptimizer,
    OffloadParam,
    Pipeline,
    Zero,
)
from planner.spec.engines import Fsdp
from planner.spec.frameworks import Framework
from planner.spec.layout import ZeroStage
from planner.spec.training import OptimizerKernel, Training

PARTITIONED = 3
"""The stage at which parameters are cut."""

_BUCKETS = {
    "reduce_bucket_size": "reduce_bucket_size",
    "allgather_bucket_size": "allgather_bucket_size",
    "prefetch_bucket_size": "stage3_prefetch_bucket_size",
    "param_persistence_threshold": "stage3_param_persistence_threshold",
    "max_live_parameters": "stage3_max_live_parameters",
    "max_reuse_distance": "stage3_max_reuse_distance",
}
"""Keys of entries and what DeepSpeed calls them."""

_FLAGS = ("overlap_comm", "contiguous_gradients", "reduce_scatter", "round_robin_gradients")

_BLOCKS = "type:Block|Layer"
"""What matches our layers as ``type:transformer`` matches Megatron-DeepSpeed's."""

_ENDS_TOO = "type:Block|Layer|Embedding|Linear"
"""``type:transformer|embedding``: Megatron-DeepSpeed's tied head is an embedding, too."""


def translate(entry: Entry) -> Case:
    """Turn a run of DeepSpeed into a case.

    Raises:
        PlannerError: it cannot be planned.

    """
    reader = Reader(entry)
    if "lora" in str(entry.training.get("method", "")).lower():
        return _adapters(entry, reader)
    reader.full_training()
    if (whole(entry.parallel, "cp", 1) or 1) > 1:
        raise UnsupportedError("context parallelism is not modelled")
    stage = _stage(entry)
    megatron = _is_megatron(entry)
    layout = reader.layout(reader.cluster(), stage)
    micro_batch, micro_steps = reader.micro_batch(), reader.micro_steps()
    training = Training(
        sequence_length=reader.sequence(),
        micro_batch_size=micro_batch,
        global_batch_size=micro_batch * micro_steps * layout.dp,
        precision=reader.precision(),
        optimizer_kernel=_kernel(entry),
        recompute=reader.recompute(),
        implementation="megatron" if megatron else "hf",
        attention=reader.attention(),
        loss=reader.loss(),
        dropout=reader.dropout() > 0,
        parameter_groups="weight_decay" if megatron else "one",
    )
    reader.assumptions.clear()
    return reader.case(training=training, deepspeed=_deepspeed(entry, reader), stage=stage)


def _adapters(entry: Entry, reader: Reader) -> Case:
    """Fine-tuning, which DeepSpeed's engine does not model; so few gradients need no buckets."""
    stage = _stage(entry)
    if max(whole(entry.parallel, axis, 1) or 1 for axis in ("tp", "pp", "ulysses_sp")) > 1:
        raise UnsupportedError("adapters beside tensors, layers or sequences that are cut")
    reader.plain_numbers()
    partitioned = stage == PARTITIONED
    tuning = tuning_of(entry, reader, autocast=not partitioned, cast_by_engine=partitioned)
    training = training_of(entry, reader)
    engine = "FSDP" if partitioned else "replicas that share states"
    reader.assume(f"ZeRO-{stage} with adapters is counted as {engine}")
    return reader.case(
        training=training,
        framework=Framework(engine="fsdp" if partitioned else "ddp", fsdp=Fsdp(version=1)),
        stage=0,
        tuning=tuning,
        states_shared=stage > 0 and not partitioned,
    )


def _stage(entry: Entry) -> ZeroStage:
    stage = entry.parallel.get("zero_stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UnsupportedError(f"zero_stage {stage!r} is not a stage")
    return cast("ZeroStage", stage)


def _is_megatron(entry: Entry) -> bool:
    """Layers that are written for tensor parallelism."""
    parallel = entry.parallel
    told = f"{entry.framework} {entry.framework_version}"
    return (
        "Megatron" in told or max(whole(parallel, "tp", 1) or 1, whole(parallel, "pp", 1) or 1) > 1
    )


def _kernel(entry: Entry) -> OptimizerKernel:
    """AdamW of torch takes foreach where nothing else is said; DeepSpeed's own is fused."""
    return "foreach" if "torch" in str(entry.training.get("optimizer", "")) else "fused"


def _deepspeed(entry: Entry, reader: Reader) -> DeepSpeed:
    fp32 = "BF16_Optimizer" in str(entry.parallel.get("zero_impl", ""))
    method = str(entry.parallel.get("pp_partition_method", ""))
    told = entry.training.get("recompute")
    own = DeepSpeed(
        zero_optimization=_zero(entry.parallel, reader),
        grad_accum_dtype="fp32" if fp32 else None,
        activation_checkpointing=_checkpointing(
            told if isinstance(told, dict) else {}, whole(entry.model, "num_layers", 1) or 1
        ),
    )
    if method.startswith("type:") or whole(entry.parallel, "pp", 1) != 1:
        own = replace(own, pipeline=Pipeline(partition_method=_partition(method, reader)))
    return own


def _checkpointing(told: Section, layers: int) -> ActivationCheckpointing:
    """Every block is a checkpoint."""
    contiguous = told.get("contiguous") is True
    return ActivationCheckpointing(
        partition_activations=told.get("partition_activations") is True,
        cpu_checkpointing=told.get("checkpoint_in_cpu") is True,
        contiguous_memory_optimization=contiguous,
        number_checkpoints=layers if contiguous else None,
    )


def _partition(method: str, reader: Reader) -> str:
    """Megatron-DeepSpeed divides its transformer layers evenly where nothing else is told."""
    if method.startswith("type:"):
        return _ENDS_TOO if "embedding" in method else _BLOCKS
    reader.assume("the pipeline is cut evenly by transformer layers")
    return _BLOCKS


def _zero(parallel: Section, reader: Reader) -> Zero:
    told: dict[str, Any] = {
        key: whole(parallel, name) for name, key in _BUCKETS.items() if whole(parallel, name)
    }
    told |= {key: parallel[key] for key in _FLAGS if isinstance(parallel.get(key), bool)}
    size = parallel.get("sub_group_size")
    if isinstance(size, int | float):
        told["sub_group_size"] = int(size)
    buckets = str(parallel.get("bucket_sizes", ""))
    if buckets == "2e8":
        told |= dict.fromkeys(("reduce_bucket_size", "allgather_bucket_size"), 200_000_000)
    elif not told:
        reader.assume("DeepSpeed's default buckets")
    offload = str(parallel.get("offload"))
    if parallel.get("offload_optimizer") == "cpu" or "optimizer" in offload:
        told["offload_optimizer"] = OffloadOptimizer(device="cpu")
    if parallel.get("offload_param") == "cpu" or "param" in offload:
        told["offload_param"] = OffloadParam(device="cpu")
    return Zero(**told)
