"""Plain PyTorch on one device or under DDP: Hugging Face's Trainer, litgpt's benchmark."""

from planner.accuracy.case import Case, UnsupportedError
from planner.accuracy.entries import Entry, whole
from planner.accuracy.translate.common import Reader
from planner.spec.training import OptimizerKernel, Training


def translate(entry: Entry) -> Case:
    """Turn a run of plain PyTorch into a case.

    Raises:
        PlannerError: it cannot be planned.

    """
    reader = Reader(entry)
    reader.full_training()
    _refuse(entry)
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
    return reader.case(training=training, engine="ddp", stage=0)


def _refuse(entry: Entry) -> None:
    """What this engine does not model."""
    parallel, training = entry.parallel, entry.training
    if max(whole(parallel, axis, 1) or 1 for axis in ("tp", "pp", "cp", "ep")) > 1:
        raise UnsupportedError("plain PyTorch with tensor, pipeline or context parallelism")
    if parallel.get("zero_stage") not in (0, None):
        raise UnsupportedError("partitioned states are not plain PyTorch")
    if str(training.get("compile", False)).lower() not in {"false", "none"}:
        raise UnsupportedError("what a compiler fuses is not modelled")


def _kernel(entry: Entry) -> OptimizerKernel:
    """``foreach`` is what torch takes on CUDA where nothing else is said."""
    return "fused" if "fused" in str(entry.training.get("optimizer", "")) else "foreach"
