"""FSDP: bytes by hand, and peaks that Hugging Face's Trainer measured."""

from pathlib import Path

import pytest

from planner.engines.fsdp.stage import Run, run_stage
from planner.layout.cut import stages
from planner.layout.ranks import PartitionIndex
from planner.model.load import load_model
from planner.spec.deepspeed import DeepSpeed
from planner.spec.devices import device
from planner.spec.layout import Layout
from planner.spec.training import Training
from planner.units import GIB, MIB


def phases(name, *, dp, sharded_bytes=4, micro_steps=1, **training):
    model = load_model(name, folder=Path())
    own = Training(keep_logits=False, dropout=False, recompute="full", **training)
    layout = Layout(dp=dp)
    (held,) = stages(model, layout, own, DeepSpeed())
    run = Run(
        model=model,
        training=own,
        layout=layout,
        device=device("a100-sxm-80gb"),
        micro_steps=micro_steps,
        sharded_bytes=sharded_bytes,
    )
    return model.num_parameters, run_stage(run, held).fold(PartitionIndex(0, 0))


@pytest.mark.parametrize("sharded_bytes", [2, 4])
@pytest.mark.parametrize("dp", [2, 8])
@pytest.mark.parametrize("micro_steps", [1, 3])
def test_shares_of_weights_gradients_and_moments_stay(sharded_bytes, dp, micro_steps):
    numel, done = phases(
        "tinyllama-1.1b",
        dp=dp,
        sharded_bytes=sharded_bytes,
        micro_steps=micro_steps,
        sequence_length=512,
    )
    ends = {phase.phase: phase.end_bytes for phase in done}
    assert ends["step"] == ends["first_step"]
    assert ends["step"] == pytest.approx(4 * sharded_bytes * numel / dp, abs=32 * MIB)


@pytest.mark.parametrize(
    ("name", "dp", "micro_batch", "resident", "peak"),
    [
        # fms-acceleration, scripts/benchmarks/refs/a100_80gb_liger.csv, lines 38 and 166
        ("llama-3-8b", 2, 4, 59.8465, 74.804),
        ("mistral-7b-v0.1", 4, 4, 26.9938, 33.7382),
    ],
)
def test_published_peaks_of_the_step_with_foreach(name, dp, micro_batch, resident, peak):
    _, done = phases(
        name,
        dp=dp,
        sequence_length=4096,
        micro_batch_size=micro_batch,
        optimizer_kernel="foreach",
        attention="flash",
        loss="fused",
    )
    assert done[-1].end_bytes / GIB == pytest.approx(resident, rel=0.001)
    assert max(phase.peak_bytes for phase in done) / GIB == pytest.approx(peak, rel=0.001)
