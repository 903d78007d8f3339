"""Runs of Megatron-Core, and of Megatron-LM before it."""

from dataclasses import replace
from typing import Literal

from planner.accuracy.case import Case, UnsupportedError
from planner.accuracy.entries import Entry, whole
from planner.accuracy.translate.common import Reader
from planner.accuracy.translate.splits import blocks_per_stage, segments
from planner.spec.frameworks import Framework
from planner.spec.layout import Layout
from planner.spec.megatron import Megatron
from planner.spec.training import Training
from planner.units import round_up

VOCABULARY_MULTIPLE = 128
"""``--make-vocab-size-divisible-by``, times tp."""


def translate(entry: Entry) -> Case:
    """Turn a run of Megatron into a case.

    Raises:
        PlannerError: it cannot be planned.

    """
    reader = Reader(entry)
    reader.full_training()
    _refuse(entry, reader)
    layout = replace(reader.layout(reader.cluster(), 0, spread=False), ep=1)
    cp = whole(entry.parallel, "cp", 1) or 1
    if layout.dp % cp or reader.sequence() % (2 * cp):
        raise UnsupportedError(f"cp {cp} does not divide dp {layout.dp} or the sequence")
    training = Training(
        # Context parallelism cuts sequences; its ranks share optimizer state like those of dp.
        sequence_length=reader.sequence() // cp,
        micro_batch_size=reader.micro_batch(),
        global_batch_size=reader.micro_batch() * _micro_steps(entry, reader, layout) * layout.dp,
        precision=reader.precision(),
        recompute=reader.recompute(),
        implementation="megatron",
        attention=reader.attention(),
        dropout=reader.dropout() > 0,
    )
    reader.assumptions.clear()
    options = _options(entry, layout)
    return reader.case(
        training=training,
        framework=Framework(engine="megatron", megatron=options),
        stage=0,
        vocabulary=_vocabulary(entry, reader, layout),
        spread=False,
    )


def _refuse(entry: Entry, reader: Reader) -> None:
    """What this engine does not model."""
    told = entry.training.get("recompute")
    if isinstance(told, dict) and told.get("modules"):
        reader.assume(f"of recomputed modules ({told['modules']}) only core_attn is counted so")
    if "fsdp" in str(entry.parallel.get("zero_impl", "")).lower():
        raise UnsupportedError("Megatron-FSDP is not modelled yet")
    for key in ("cuda_graph_impl", "fine_grained_activation_offloading"):
        if entry.training.get(key):
            raise UnsupportedError(f"{key} is not modelled yet")


def _micro_steps(entry: Entry, reader: Reader, layout: Layout) -> int:
    """Told, or what the global batch leaves."""
    told = whole(entry.training, "num_microbatches")
    if told:
        return told
    batch = whole(entry.training, "global_batch")
    if batch:
        return max(1, batch // (reader.micro_batch() * layout.dp))
    return layout.pp


def _options(entry: Entry, layout: Layout) -> Megatron:
    parallel, training = entry.parallel, entry.training
    implementation = str(parallel.get("zero_impl", ""))
    engine = str(training.get("transformer_impl", ""))
    ep = whole(parallel, "ep", 1) or 1
    return Megatron(
        use_distributed_optimizer="distributed-optimizer" in implementation
        or parallel.get("zero_stage") == 1,
        accumulate_allreduce_grads_in_fp32=str(training.get("main_grad_dtype", "fp32")) == "fp32",
        contiguous_gradients=implementation != "DDP local",
        gradient_accumulation_fusion=training.get("gradient_accumulation_fusion", _fuses(entry))
        is True,
        sequence_parallel=parallel.get("sequence_parallel") is True and layout.tp > 1,
        transformer_engine=engine != "local" and "DDP local" not in implementation,
        blocks_per_stage=blocks_per_stage(entry, layout.pp),
        virtual_stages=_virtual_stages(entry, layout),
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=whole(parallel, "etp", layout.tp) or 1,
        mtp_num_layers=whole(entry.model, "mtp_layers", 0) or 0,
        loss=_loss(str(training.get("cross_entropy", "")).lower()),
    )


def _loss(told: str) -> Literal["unfused", "fused", "native"]:
    if "native" in told:
        return "native"
    return "fused" if "te" in told else "unfused"


def _fuses(entry: Entry) -> bool:
    """The default of releases with main gradients."""
    return entry.parallel.get("zero_impl") != "DDP local"


def _virtual_stages(entry: Entry, layout: Layout) -> int:
    parallel = entry.parallel
    if layout.pp == 1:
        return 1
    for key in ("vpp", "num_virtual_stages_per_pipeline_rank"):
        if whole(parallel, key):
            return whole(parallel, key) or 1
    told = parallel.get("pipeline_model_parallel_layout")
    if isinstance(told, str):
        return max(1, len(segments(told)) // layout.pp)
    size = whole(parallel, "num_layers_per_virtual_pipeline_stage")
    layers = whole(entry.model, "num_layers", 1) or 1
    return max(1, layers // layout.pp // size) if size else 1


def _vocabulary(entry: Entry, reader: Reader, layout: Layout) -> int | None:
    """Megatron pads the vocabulary on every layout."""
    told = whole(entry.model, "padded_vocab")
    size = told or whole(entry.model, "vocab")
    if size is None:
        return None
    if told is None:
        reader.assume(f"the vocabulary is padded to multiples of {VOCABULARY_MULTIPLE} x tp")
    return round_up(size, VOCABULARY_MULTIPLE * layout.tp)
