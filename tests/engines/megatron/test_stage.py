"""Megatron's stages: what is resident by hand, what a step leaves, and published peaks."""

from pathlib import Path

import pytest

from planner.engines.megatron.stage import run_stage
from planner.engines.megatron.state import Run
from planner.layout.cut import stages
from planner.layout.ranks import PartitionIndex
from planner.model.load import load_model
from planner.spec.deepspeed import DeepSpeed, Pipeline
from planner.spec.devices import device
from planner.spec.layout import Layout
from planner.spec.megatron import Megatron
from planner.spec.training import Training
from planner.units import GIB, MIB

EVENLY = DeepSpeed(pipeline=Pipeline(partition_method="type:Block|Layer"))

LLAMA = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 12, "num_attention_heads": 64, "num_key_value_heads": 8,
    "vocab_size": 128256,
}  # fmt: skip
"""Llama-3-70B with 12 layers."""

GPT = {"model_type": "gpt2", "n_embd": 6144, "n_layer": 40, "n_head": 32, "vocab_size": 50688}


def phases(keys, *, stage=0, layout, options, name="h100-sxm-80gb", micro_steps=4, **training):
    model = load_model(keys, folder=Path())
    own = Training(implementation="megatron", dropout=False, **training)
    run = Run(
        model=model,
        training=own,
        layout=layout,
        options=options,
        device=device(name),
        micro_steps=micro_steps,
    )
    held = stages(model, layout, own, EVENLY)[stage]
    return held.num_parameters, run_stage(run, held).fold(PartitionIndex(0, 0))


@pytest.mark.parametrize("virtual", [1, 2])
@pytest.mark.parametrize("stage", [0, 1])
def test_what_stays_is_18_bytes_or_less_and_all_steps_end_alike(stage, virtual):
    options = Megatron(use_distributed_optimizer=True, virtual_stages=virtual)
    numel, done = phases(
        LLAMA, stage=stage, layout=Layout(dp=4, pp=2), options=options, sequence_length=4096
    )
    by_name = {phase.phase: phase for phase in done}
    state = 6 * numel + 12 * -(-numel // 4)
    dummies = 855_638_016 * 2  # the matrices of one block
    workspaces = 96 * MIB
    assert by_name["step"].end_bytes == pytest.approx(state + dummies + workspaces, abs=MIB)
    assert by_name["step"].end_bytes == by_name["first_step"].end_bytes


@pytest.mark.parametrize(
    ("tp", "pp", "stage", "gib"),
    [
        # SimuMax, docs/b200/b200_release_v1.2_summary.json: max_allocated of the stage's ranks
        (1, 2, 0, 66.552),
        (1, 2, 1, 62.9682),
        (2, 1, 0, 60.6801),
        (4, 1, 0, 39.072),
        (8, 1, 0, 28.2865),
    ],
)
def test_peaks_of_llama_3_70b_with_12_layers(tp, pp, stage, gib):
    options = Megatron(use_distributed_optimizer=True, sequence_parallel=tp > 1, loss="fused")
    _, done = phases(
        LLAMA,
        stage=stage,
        layout=Layout(dp=8 // (tp * pp), tp=tp, pp=pp),
        options=options,
        name="b200-sxm-180gb",
        sequence_length=4096,
        attention="flash",
    )
    peak = max(phase.peak_bytes for phase in done)
    assert peak / GIB == pytest.approx(gib, rel=0.01)


def test_local_ddp_keeps_the_gradients_of_the_step_before():
    """bigscience, meg_gpt2_base_n4_dp1_tp4_pp4-1809579.out, stage 2: 21.1261 and 23.7295 GiB."""
    options = Megatron(
        accumulate_allreduce_grads_in_fp32=False,
        contiguous_gradients=False,
        gradient_accumulation_fusion=False,
        transformer_engine=False,
    )
    _, done = phases(
        GPT,
        stage=2,
        layout=Layout(dp=1, tp=4, pp=4),
        options=options,
        name="v100-sxm-32gb",
        sequence_length=1024,
        precision="fp16",
        recompute="full",
        attention="eager",
    )
    assert done[-1].end_bytes / GIB == pytest.approx(21.1261, rel=0.002)
    assert max(phase.peak_bytes for phase in done) / GIB == pytest.approx(23.7295, rel=0.01)
