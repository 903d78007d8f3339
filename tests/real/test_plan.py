"""Plans of whole files against real training: DeepSpeed, transformers, two ranks, to the byte.

Each rank runs on its own, with collectives that return at once. ZeRO-3 compares values between
ranks, so it is left to `test_zero3`.

What the ledger sees beyond the plan: buffers of a model that are no parameters (rotary frequencies:
a few hundred bytes), and the scalars of losses, norms and steps.
"""

from pathlib import Path

import pytest
import yaml

from planner.plan import make_plan
from planner.spec.load import load
from tests.real.harness import run_ranks

pytestmark = pytest.mark.real

WORKER = Path(__file__).with_name("worker_plan.py")
RANKS, STEPS = 2, 3
UNNAMED_BYTES = 2048
"""Buffers and scalars, see above; the models hold tens of millions of bytes."""

LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}

CASES = {
    "zero-0": ({}, {}, {"zero_stage": 0}, {}),
    "zero-1": ({}, {}, {"zero_stage": 1}, {}),
    "zero-2": ({}, {}, {"zero_stage": 2}, {}),
    "zero-1, three micro-steps": ({}, {"global_batch_size": 12}, {"zero_stage": 1}, {}),
    "zero-2, three micro-steps": ({}, {"global_batch_size": 12}, {"zero_stage": 2}, {}),
    "zero-2, recompute": ({}, {"recompute": "full"}, {"zero_stage": 2}, {}),
    "zero-2, tied": ({"tie_word_embeddings": True}, {}, {"zero_stage": 2}, {}),
    "zero-2, eager attention": ({}, {"attention": "eager"}, {"zero_stage": 2}, {}),
    "zero-2, overlap": ({}, {}, {"zero_stage": 2}, {"overlap_comm": True}),
    "zero-1, foreach": ({}, {"optimizer_kernel": "foreach"}, {"zero_stage": 1}, {}),
    "zero-1, logits dropped": ({}, {"keep_logits": False}, {"zero_stage": 1}, {}),
    "zero-2, qwen3": ({"model_type": "qwen3", "head_dim": 32}, {}, {"zero_stage": 2}, {}),
}


def write_case(folder, name):
    model, training, layout, zero = CASES[name]
    file = folder / f"{list(CASES).index(name)}.yaml"
    document = {
        "model": LLAMA | model,
        "cluster": {"nodes": 1, "devices_per_node": RANKS, "device": "cpu"},
        "training": {
            "sequence_length": 64,
            "micro_batch_size": 2,
            "global_batch_size": 4,
            "optimizer_kernel": "loop",
        }
        | training,
        "layout": layout,
        "deepspeed": {"zero_optimization": {"reduce_bucket_size": 500_000} | zero},
    }
    file.write_text(yaml.safe_dump(document))
    return file


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One start of the ranks runs all cases: importing DeepSpeed takes longer than training."""
    folder = tmp_path_factory.mktemp("plans")
    files = [write_case(folder, name) for name in CASES]
    case = {"files": [str(file) for file in files], "steps": STEPS}
    results = run_ranks(WORKER, case, ranks=RANKS, timeout_seconds=540)
    return {
        name: (files[index], [rank[index] for rank in results]) for index, name in enumerate(CASES)
    }


def by_phase(readings):
    """(peak, end) of each phase as the plan names them: the first step, and the last."""
    phases = {}
    for reading in readings:
        step, _, name = reading["phase"].rpartition(".")
        if step not in {"", "0", str(STEPS - 1)}:
            continue
        key = f"first_{name}" if step == "0" else name
        peak, _ = phases.get(key, (0, 0))
        phases[key] = (max(peak, reading["peak_bytes"]), reading["end_bytes"])
    return phases


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_what_deepspeed_allocates(measured, name):
    file, readings = measured[name]
    plan = make_plan(load(file), every_rank=True)
    assert sum(rank.num_ranks for rank in plan.ranks) == RANKS
    wrong = [
        f"rank {rank.rank} {phase.phase}: planned {planned:,}, measured {real:,} ({what})"
        for rank in plan.ranks
        for phase in rank.phases
        for what, planned, real in zip(
            ("peak", "end"),
            (phase.peak_bytes, phase.end_bytes),
            by_phase(readings[rank.rank])[phase.phase],
            strict=True,
        )
        if abs(planned - real) > UNNAMED_BYTES
    ]
    assert not wrong, "\n".join(wrong)
