"""Plain PyTorch on one device or under DDP: Hugging Face's Trainer, litgpt's benchmark."""

from planner.accuracy.case import Case, UnsupportedError
from planner.accuracy.entries import Entry, whole
from planner.accuracy.translate.common import Reader
from planner.accuracy.translate.tuning import tuning_of
from planner.spec.training import OptimizerKernel, Training

NOT_MIXED = {"no", "None", "False"}


def translate(entry: Entry) -> Case:
    """Turn a run of plain PyTorch into a case.

    Raises:
        PlannerError: it cannot be planned.

    """
    reader = Reader(entry)
    reader.plain_numbers()
    _refuse(entry)
    if entry.parallel.get("zero_stage") not in (0, None):
        raise UnsupportedError("partitioned states are not plain PyTorch")
    mixed = str(entry.training.get("mixed_precision", "no"))
    tuning = tuning_of(entry, reader, autocast=mixed not in NOT_MIXED)
    return reader.case(training=_training(entry, reader), engine="ddp", stage=0, tuning=tuning)


def translate_fsdp(entry: Entry) -> Case:
    """Turn a run of FSDP into a case.

    Raises:
        PlannerError: it cannot be planned.

    """
    reader = Reader(entry)
    reader.plain_numbers()
    _refuse(entry)
    mixed = str(entry.training.get("mixed_precision", "no"))
    precision = str(entry.training.get("param_dtype", ""))
    keeps_fp32 = mixed not in NOT_MIXED or "fp32" in precision
    tuning = tuning_of(entry, reader, autocast=False, cast_by_engine=keeps_fp32)
    training = _training(entry, reader)
    return reader.case(
        training=training, engine="fsdp", stage=0, shards_in_fp32=keeps_fp32, tuning=tuning
    )


def _training(entry: Entry, reader: Reader) -> Training:
    training = Training(
        sequence_length=reader.sequence(),
        micro_batch_size=reader.micro_batch(),
        global_batch_size=reader.micro_batch()
        * reader.micro_steps()
        * reader.layout(reader.cluster(), 0).dp,
        precision=reader.precision(),
        optimizer_kernel=_kernel(entry),
        recompute=reader.recompute(),
        attention=reader.attention(),
        loss=reader.loss(),
        keep_logits=False,
        dropout=reader.dropout() > 0,
    )
    reader.assumptions.clear()
    return training


def _refuse(entry: Entry) -> None:
    """What this engine does not model."""
    parallel, training = entry.parallel, entry.training
    if max(whole(parallel, axis, 1) or 1 for axis in ("tp", "pp", "cp", "ep")) > 1:
        raise UnsupportedError("plain PyTorch with tensor, pipeline or context parallelism")
    if str(training.get("compile", False)).lower() not in {"false", "none"}:
        raise UnsupportedError("what a compiler fuses is not modelled")


def _kernel(entry: Entry) -> OptimizerKernel:
    """``foreach`` is what torch takes on CUDA where nothing else is said."""
    return "fused" if "fused" in str(entry.training.get("optimizer", "")) else "foreach"
