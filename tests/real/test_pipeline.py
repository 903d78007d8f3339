"""A pipeline stage's walk against DeepSpeed's own PipelineEngine, instruction by instruction."""

from math import prod
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("deepspeed")

from planner.engines.deepspeed.bf16_optimizer import bf16_optimizer, uses_bf16_optimizer
from planner.engines.deepspeed.boundary import boundary
from planner.engines.deepspeed.entry import Entry
from planner.engines.deepspeed.pipeline import pipeline_walk
from planner.engines.deepspeed.strategy import Setup
from planner.engines.deepspeed.unpartitioned import unpartitioned
from planner.engines.deepspeed.walk import Handles
from planner.engines.deepspeed.zero12 import zero12
from planner.layout.partition import partition_uniform
from planner.layout.schedule import instructions
from planner.layout.stage import LocalLayer, LocalParameter, Stage
from planner.memory.timeline import PartitionIndex, PhasePeak, Timeline
from planner.model.description import Layer, Placed
from planner.spec.deepspeed import DeepSpeed, Zero
from planner.spec.layout import Layout
from planner.spec.training import Training
from tests.real.harness import run_ranks
from tests.real.pipeline_tapes import head_tape, linear_tape, stem_tape

WORKER = Path(__file__).with_name("worker_pipeline.py")
HIDDEN, VOCAB, BATCH, LENGTH, BUCKET = 64, 256, 2, 32, 5000
SCALARS_BYTES = 128
"""Losses, scales and step counts, which are not booked; every tensor of the runs is larger."""

NAMES = {
    "LoadMicroBatch": "load",
    "ForwardPass": "forward",
    "BackwardPass": "backward",
    "SendActivation": "send_activation",
    "RecvActivation": "receive_activation",
    "SendGrad": "send_gradient",
    "RecvGrad": "receive_gradient",
    "ReduceTiedGrads": "reduce_tied",
    "ReduceGrads": "reduce",
    "OptimizerStep": "step",
}


def make_case(**changes: Any) -> dict[str, Any]:
    case = {"pp": 2, "dp": 1, "micro_steps": 3, "stage": 1, "precision": "bf16", "layers": 6}
    case |= {
        "kernel": "fused",
        "checkpoint_interval": 0,
        "hidden": HIDDEN,
        "vocab": VOCAB,
        "batch": BATCH,
        "length": LENGTH,
    }
    case |= changes
    case["config"] = {
        "train_micro_batch_size_per_gpu": BATCH,
        "gradient_accumulation_steps": case["micro_steps"],
        "zero_optimization": {"stage": case["stage"], "reduce_bucket_size": BUCKET},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000,
    }
    if case["precision"] != "fp32":
        case["config"][case["precision"]] = {"enabled": True}
    return case


def make_stage(case: dict[str, Any], index: int) -> tuple[Stage, list[Any]]:
    """One stage of a case and the tapes of its layers."""
    shapes = [(VOCAB, HIDDEN), *[(HIDDEN, HIDDEN)] * case["layers"], (VOCAB, HIDDEN)]
    bounds = partition_uniform(len(shapes), case["pp"])
    span = range(bounds[index], bounds[index + 1])
    shape, dtype = (BATCH, LENGTH), case["precision"]
    layers, tapes = [], []
    for place in span:
        parameter = LocalParameter(f"{place}", prod(shapes[place]), expert=False, ndim=2)
        placed = Placed(prefix="", layer=Layer(kind="block", parameters=()))
        layers.append(LocalLayer(placed=placed, parameters=(parameter,), places=((0,),)))
        if place == 0:
            tapes.append(stem_tape(VOCAB, HIDDEN, shape, dtype))
        elif place == len(shapes) - 1:
            tapes.append(head_tape(VOCAB, HIDDEN, shape, dtype))
        else:
            kept = place == span[-1]
            recompute = case["checkpoint_interval"] == 1
            tapes.append(linear_tape(HIDDEN, shape, dtype, kept=kept, recompute=recompute))
    order = tuple(range(len(layers)))
    stage = Stage(index=index, num_stages=case["pp"], layers=tuple(layers), registered=order)
    return stage, tapes


def make_strategy(setup: Setup) -> Any:
    if uses_bf16_optimizer(setup.training, setup.layout, setup.deepspeed):
        return bf16_optimizer(setup)
    return zero12(setup) if setup.layout.zero_stage else unpartitioned(setup)


def predict(case: dict[str, Any], index: int) -> Timeline:
    stage, tapes = make_stage(case, index)
    setup = Setup(
        parameters=tuple(p for layer in stage.layers for p in layer.parameters),
        layout=Layout(dp=case["dp"], pp=case["pp"], zero_stage=case["stage"]),
        training=Training(
            sequence_length=LENGTH,
            micro_batch_size=BATCH,
            precision=case["precision"],
            optimizer_kernel=case["kernel"],
        ),
        deepspeed=DeepSpeed(zero_optimization=Zero(reduce_bucket_size=BUCKET)),
        micro_steps=case["micro_steps"],
        capacity_bytes=2**40,
    )
    timeline = Timeline()
    strategy = make_strategy(setup)
    timeline.phase("init")
    strategy.initialise(timeline)
    size = BATCH * LENGTH * HIDDEN * (4 if case["precision"] == "fp32" else 2)
    sent = boundary(setup.layout, setup.deepspeed, size)
    entry = Entry(stage=stage, setup=setup, boundary=sent)
    walk = pipeline_walk(entry, tapes, strategy, Handles())
    for step in range(2):
        for number, instruction in enumerate(instructions(index, case["pp"], case["micro_steps"])):
            timeline.phase(f"{step}.{number}.{instruction.action}")
            walk.execute(timeline, instruction)
    return timeline


def by_phase(readings: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """End and peak of each instruction, numbered within its step."""
    result = {}
    number = 0
    for reading in readings:
        step, _, rest = reading["phase"].partition(".")
        if rest == "rest":
            number = 0
        elif rest:
            name = f"{step}.{number}.{NAMES[rest.split('.')[0]]}"
            result[name] = (reading["end_bytes"], reading["peak_bytes"])
            number += 1
        elif step == "init":
            result["init"] = (reading["end_bytes"], reading["peak_bytes"])
    return result


CASES = [
    pytest.param(make_case(), id="two stages, three micro-batches, bf16"),
    pytest.param(make_case(micro_steps=4, dp=2), id="two stages, two replicas"),
    pytest.param(make_case(pp=4, micro_steps=5), id="four stages"),
    pytest.param(make_case(micro_steps=1, precision="fp32"), id="one micro-batch, fp32"),
    pytest.param(make_case(checkpoint_interval=1), id="layers recomputed"),
    pytest.param(make_case(stage=0), id="bf16 without ZeRO"),
    pytest.param(make_case(stage=0, precision="fp32", dp=2), id="fp32 without ZeRO"),
]


@pytest.mark.real
@pytest.mark.parametrize("case", CASES)
def test_every_instruction_of_every_rank(case):
    ranks = run_ranks(WORKER, case, ranks=case["pp"] * case["dp"], timeout_seconds=900)
    differences = []
    for rank, readings in enumerate(ranks):
        index, replica = divmod(rank, case["dp"])
        told: dict[str, PhasePeak] = {
            phase.phase: phase
            for phase in predict(case, index).fold(PartitionIndex(replica, replica))
        }
        measured = by_phase(readings)
        assert set(told) == set(measured)
        for name, (end, peak) in measured.items():
            if name == "init":
                continue
            off = (end - told[name].end_bytes, peak - told[name].peak_bytes)
            if max(map(abs, off)) > SCALARS_BYTES:
                differences.append((rank, name, *off))
    assert differences == []
