"""DeepSpeed's own activation checkpoints, layer by layer, under each of their keys."""

from pathlib import Path

import pytest

from planner.activations.programs.keeping import keeping
from planner.engines.deepspeed.checkpoints import Checkpoints, arranged
from planner.layout.stage import LocalLayer, Stage
from planner.model.description import Layer, Placed
from planner.spec.deepspeed import ActivationCheckpointing, DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Training
from tests.real.harness import run_ranks
from tests.real.pipeline_tapes import linear_tape

pytestmark = pytest.mark.real

WORKER = Path(__file__).with_name("worker_checkpointing.py")
HIDDEN, SHAPE, LAYERS = 64, (2, 32), 5
UNIT = 4 * SHAPE[0] * SHAPE[1] * HIDDEN
WEIGHT = 4 * HIDDEN * HIDDEN
SCALARS_BYTES = 512
"""What stands in the place of emptied inputs, and their shapes."""

PARTS = {"partition_activations": True}
ROOM = {**PARTS, "contiguous_memory_optimization": True}
CASES = {
    "as they are": ({}, 1, False),
    "one part": (PARTS, 1, False),
    "two parts": (PARTS, 2, False),
    "four parts": (PARTS, 4, False),
    "contiguous": ({**ROOM, "number_checkpoints": LAYERS}, 2, False),
    "more room than needed": ({**ROOM, "number_checkpoints": LAYERS + 3}, 4, False),
    "host": ({"cpu_checkpointing": True}, 1, True),
}
"""Keys, tensor-parallel degree, and whether the CPU is to pass for a device."""

ARGUMENTS = {
    "partition_activations": "partition_activations",
    "contiguous_memory_optimization": "contiguous_checkpointing",
    "number_checkpoints": "num_checkpoints",
    "cpu_checkpointing": "checkpoint_in_cpu",
}


@pytest.fixture(scope="module")
def measured():
    cases = [
        {
            "keys": {ARGUMENTS[key]: value for key, value in keys.items()},
            "tp": tp,
            "pretend": pretend,
            "hidden": HIDDEN,
            "shape": SHAPE,
            "layers": LAYERS,
        }
        for keys, tp, pretend in CASES.values()
    ]
    (results,) = run_ranks(WORKER, cases, ranks=1)
    return dict(zip(CASES, results, strict=True))


def told(keys, tp):
    """End and peak of each layer's forward, and of its backward up to its gradient."""
    layout = Layout(dp=1, tp=tp)
    deepspeed = DeepSpeed(activation_checkpointing=ActivationCheckpointing(**keys))
    backend = "cuda" if "cpu_checkpointing" in keys else "cpu"
    tapes = [
        linear_tape(
            HIDDEN,
            SHAPE,
            "fp32",
            kept=place == LAYERS - 1,
            recompute=True,
            keeping=keeping(layout, deepspeed, backend),
        )
        for place in range(LAYERS)
    ]
    layer = Layer(kind="block", parameters=())
    local = LocalLayer(placed=Placed(prefix="", layer=layer), parameters=(), places=())
    stage = Stage(index=0, num_stages=1, layers=(local,) * LAYERS, registered=())
    checkpoints = Checkpoints(
        count=LAYERS,
        input_bytes=UNIT,
        training=Training(sequence_length=1, recompute="full", implementation="megatron"),
        layout=layout,
        deepspeed=deepspeed,
        backend=backend,
    )
    tapes = arranged(tapes, stage, checkpoints)
    now, result = 0, []
    for tape in tapes:
        high = now
        for segment in tape.forward:
            high = max(high, now + size(segment.peak))
            now += size(segment.net)
        result.append((now, high))
    high = now
    for segment in (each for tape in reversed(tapes) for each in tape.backward):
        high = max(high, now + size(segment.peak))
        now += size(segment.net)
        if segment.mark is not None and segment.mark.kind == "gradient":
            now += WEIGHT
            result.append((now, max(high, now)))
            high = now
    return result


def size(changes):
    return sum(change for _, change in changes)


@pytest.mark.parametrize("name", CASES)
def test_every_checkpoint(measured, name):
    keys, tp, _ = CASES[name]
    differences = [
        (place, [real - planned for real, planned in zip(reading, expected, strict=True)])
        for place, (reading, expected) in enumerate(
            zip(measured[name], told(keys, tp), strict=True)
        )
        if any(
            abs(real - planned) > SCALARS_BYTES
            for real, planned in zip(reading, expected, strict=True)
        )
    ]
    assert differences == []
