"""Fine-tuning on one device: peaks that Hugging Face's Trainer measured, and what stays."""

from pathlib import Path

import pytest

from planner.engines.ddp.stage import Run, run_stage
from planner.layout.cut import stages
from planner.layout.ranks import PartitionIndex
from planner.model.adapters import Tuning, tuned
from planner.model.load import load_model
from planner.spec.deepspeed import DeepSpeed
from planner.spec.devices import device
from planner.spec.layout import Layout
from planner.spec.training import Training
from planner.units import GIB

ATTENTION = frozenset({"attention.q", "attention.k", "attention.v", "attention.o"})


def phases(name, *, base="model", micro_batch=4, loss="fused"):
    model = load_model(name, folder=Path())
    tuning = Tuning(rank=16, targets=ATTENTION, base=base, adapters="fp32_autocast")
    training = Training(
        sequence_length=4096,
        micro_batch_size=micro_batch,
        optimizer_kernel="foreach",
        recompute="full",
        attention="flash",
        loss=loss,
        keep_logits=False,
        dropout=False,
    )
    layout = Layout(dp=1)
    own = tuned(model, tuning)
    (held,) = stages(own, layout, training, DeepSpeed())
    run = Run(
        model=own,
        training=training,
        layout=layout,
        device=device("a100-sxm-80gb"),
        micro_steps=1,
    )
    return run_stage(run, held).fold(PartitionIndex(0, 0))


@pytest.mark.parametrize(
    ("micro_batch", "loss", "peak"),
    [
        # fms-acceleration, scripts/benchmarks/refs/a100_80gb_liger.csv, lines 11, 15, 16, 17
        (4, "in_place", 35.0587),
        (4, "fused", 23.1955),
        (8, "fused", 31.2624),
        (16, "fused", 47.3961),
    ],
)
def test_published_peaks_of_llama_with_adapters(micro_batch, loss, peak):
    done = phases("llama-3-8b", micro_batch=micro_batch, loss=loss)
    assert max(p.peak_bytes for p in done) / GIB == pytest.approx(peak, rel=0.005)
    assert done[-1].end_bytes / GIB == pytest.approx(15.126, rel=0.001)


def test_four_bits_of_the_same_model():
    """The same file, line 23."""
    done = phases("llama-3-8b", base="nf4_double")
    assert done[-1].end_bytes / GIB == pytest.approx(5.48, rel=0.001)
    assert max(p.peak_bytes for p in done) / GIB == pytest.approx(13.4216, rel=0.02)
