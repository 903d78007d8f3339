"""Runs of either FSDP: transformers' Trainer, Accelerate, Composer, thunder, torchtitan."""

from dataclasses import replace

from planner.accuracy.case import Case, UnsupportedError
from planner.accuracy.entries import Entry, whole
from planner.accuracy.translate.common import Reader
from planner.accuracy.translate.single import NOT_MIXED, compiled, fusible, training_of
from planner.accuracy.translate.tuning import tuning_of
from planner.spec.engines import Fsdp
from planner.spec.frameworks import Framework
from planner.spec.training import Training


def translate(entry: Entry) -> Case:
    """Turn a run of FSDP into a case.

    Raises:
        PlannerError: it cannot be planned.

    """
    reader = Reader(entry)
    reader.plain_numbers()
    sharding = _sharding(entry)
    tuning = tuning_of(entry, reader, autocast=False, cast_by_engine=sharding.mixed_precision)
    training = _cut(entry, reader, training_of(entry, reader))
    if "foundry" in entry.framework:
        reader.assume("the loss is llm-foundry's default, one fused kernel")
        training = replace(training, loss="in_place")
    return reader.case(
        training=training,
        framework=Framework(engine="fsdp", fsdp=sharding),
        stage=0,
        tuning=tuning,
    )


def _sharding(entry: Entry) -> Fsdp:
    told = str(entry.parallel.get("zero_impl", "")).lower()
    second = entry.framework == "torchtitan" or "fsdp2" in told or "FSDP2" in entry.framework
    kept = any(word in told for word in ("shard_grad_op", "forward=false", "forward=never"))
    return Fsdp(
        version=2 if second else 1,
        mixed_precision=_keeps_fp32(entry),
        reduce_in_fp32=entry.framework == "torchtitan",
        reshard_after_forward=not kept,
        replicas=whole(entry.parallel, "dp_replicate", 1) or 1,
    )


def _keeps_fp32(entry: Entry) -> bool:
    training = entry.training
    mixed = str(training.get("mixed_precision", "no"))
    precision = str(training.get("param_dtype", ""))
    told = f"{precision} {training.get('optimizer', '')} {entry.parallel.get('zero_impl', '')}"
    wide = any(word in told.lower() for word in ("fp32", "mixed"))
    return (
        mixed not in NOT_MIXED
        or entry.framework == "torchtitan"
        or (wide and "states in" not in told)
    )


def _cut(entry: Entry, reader: Reader, training: Training) -> Training:
    """Tensor and context parallelism as torchtitan has them: sequences are cut, too."""
    cp = whole(entry.parallel, "cp", 1) or 1
    tp = whole(entry.parallel, "tp", 1) or 1
    if training.sequence_length % (2 * cp * tp):
        raise UnsupportedError(f"cp {cp} and tp {tp} do not divide the sequence")
    if cp > 1:
        training = replace(training, sequence_length=training.sequence_length // cp)
    if tp > 1:
        reader.assume("layers cut by tensors are counted as Megatron's")
        return replace(training, implementation="megatron", sequence_parallel=True)
    if compiled(entry) and training.recompute == "none" and fusible(entry):
        reader.assume("compiled layers are counted as Megatron's fused kernels")
        return replace(training, implementation="megatron")
    return training
