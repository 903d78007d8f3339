"""Plain PyTorch: bytes by hand, and peaks that Hugging Face's Trainer measured."""

from pathlib import Path

import pytest

from planner.engines.ddp.stage import Run, run_stage
from planner.layout.cut import stages
from planner.layout.ranks import PartitionIndex
from planner.model.load import load_model
from planner.spec.deepspeed import DeepSpeed
from planner.spec.devices import device
from planner.spec.layout import Layout
from planner.spec.training import Training
from planner.units import GIB, MIB


def phases(name, *, dp=1, micro_steps=1, **training):
    model = load_model(name, folder=Path())
    own = Training(keep_logits=False, dropout=False, **training)
    layout = Layout(dp=dp)
    (held,) = stages(model, layout, own, DeepSpeed())
    run = Run(
        model=model,
        training=own,
        layout=layout,
        device=device("a100-sxm-80gb"),
        micro_steps=micro_steps,
    )
    return model.num_parameters, run_stage(run, held).fold(PartitionIndex(0, 0))


@pytest.mark.parametrize(("dp", "copies"), [(1, 3), (2, 4)])
@pytest.mark.parametrize("micro_steps", [1, 4])
def test_weights_moments_and_ddps_buckets_stay(dp, copies, micro_steps):
    numel, done = phases(
        "tinyllama-1.1b", dp=dp, micro_steps=micro_steps, sequence_length=512, recompute="full"
    )
    ends = {phase.phase: phase.end_bytes for phase in done}
    assert ends["step"] == ends["first_step"]
    assert ends["step"] == pytest.approx(copies * 2 * numel, abs=32 * MIB)


def test_a_published_peak_of_the_step_with_foreach():
    """fms-acceleration, scripts/benchmarks/refs/a100_80gb_liger.csv, line 2: Llama-3-8B, bf16."""
    numel, done = phases(
        "llama-3-8b",
        sequence_length=4096,
        micro_batch_size=2,
        optimizer_kernel="foreach",
        recompute="full",
        attention="flash",
    )
    peak = max(phase.peak_bytes for phase in done)
    assert peak / GIB == pytest.approx(74.80, rel=0.001)
    assert peak == pytest.approx(5 * 2 * numel, rel=0.001)
