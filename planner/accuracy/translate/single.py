"""Plain PyTorch on one device or under DDP: Hugging Face's Trainer, litgpt's benchmark."""

from dataclasses import replace

from planner.accuracy.case import Case, UnsupportedError
from planner.accuracy.entries import Entry, whole
from planner.accuracy.translate.common import Reader
from planner.accuracy.translate.tuning import tuning_of
from planner.spec.frameworks import Framework
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
    mixed = str(entry.training.get("mixed_precision", "no"))
    tuning = tuning_of(entry, reader, autocast=mixed not in NOT_MIXED)
    training = training_of(entry, reader)
    if compiled(entry) and fusible(entry):
        reader.assume("compiled layers are counted as Megatron's fused kernels")
        training = replace(training, implementation="megatron")
    return reader.case(training=training, framework=Framework(engine="ddp"), stage=0, tuning=tuning)


def training_of(entry: Entry, reader: Reader) -> Training:
    """What all of PyTorch's engines read alike."""
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


def compiled(entry: Entry) -> bool:
    """A compiler fused the layers' operations."""
    return str(entry.training.get("compile", False)).lower() not in {"false", "none"}


def fusible(entry: Entry) -> bool:
    """Blocks as Megatron's fused kernels know them: a norm before each of two branches."""
    return "neox" not in str(entry.model) and entry.model.get("parallel_residual") is not True


def _refuse(entry: Entry) -> None:
    """What this engine does not model."""
    parallel = entry.parallel
    if max(whole(parallel, axis, 1) or 1 for axis in ("tp", "pp", "cp", "ep")) > 1:
        raise UnsupportedError("plain PyTorch with tensor, pipeline or context parallelism")
    if parallel.get("zero_stage") not in (0, None):
        raise UnsupportedError("partitioned states are not plain PyTorch")


def _kernel(entry: Entry) -> OptimizerKernel:
    """``foreach`` is what torch takes on CUDA where nothing else is said."""
    return "fused" if "fused" in str(entry.training.get("optimizer", "")) else "foreach"
