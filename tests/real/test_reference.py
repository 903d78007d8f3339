"""Whole plans of the reference transformer against DeepSpeed: pipelines, tensor cuts, recompute.

Each rank runs alone, with collectives that return at once, in one process for all cases. What the
ledger sees beyond the plan are scalars of losses, norms, scales and steps.
"""

from pathlib import Path

import pytest
import yaml

pytest.importorskip("deepspeed")

from planner.engines.deepspeed.pipeline import PHASES
from planner.plan import make_plan
from planner.spec.load import load
from tests.real.harness import run_ranks

pytestmark = pytest.mark.real

WORKER = Path(__file__).with_name("worker_reference.py")
STEPS = 2
SCALARS_BYTES = 128

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
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 256,
    "n_layer": 3,
    "n_head": 8,
    "n_positions": 512,
    "vocab_size": 2048,
    "tie_word_embeddings": True,
}
WHOLE_BOUNDARIES = {"pipe_partitioned": False, "grad_partitioned": False}

CASES = {
    "zero-1": (2, {}),
    "zero-2, tensors in two": (2, {"layout": {"tp": 2, "zero_stage": 2}}),
    "two stages": (2, {"layout": {"pp": 2}}),
    "two stages, recomputed, tied, by type": (
        2,
        {
            "model": GPT2,
            "layout": {"pp": 2},
            "training": {"recompute": "full"},
            "deepspeed": {"pipeline": {"partition_method": "type:block"}},
        },
    ),
    "two stages, tensors in two, two replicas": (
        8,
        {"layout": {"pp": 2, "tp": 2}, "deepspeed": {"pipeline": WHOLE_BOUNDARIES}},
    ),
}


def write_case(folder, name):
    ranks, changes = CASES[name]
    file = folder / f"{list(CASES).index(name)}.yaml"
    training = {
        "sequence_length": 64,
        "micro_batch_size": 2,
        "global_batch_size": 12,
        "optimizer_kernel": "loop",
        "implementation": "reference",
    }
    document = {
        "model": changes.get("model", LLAMA),
        "cluster": {"nodes": 1, "devices_per_node": ranks, "device": "cpu"},
        "training": training | changes.get("training", {}),
        "layout": {"zero_stage": 1} | changes.get("layout", {}),
        "deepspeed": {"zero_optimization": {"reduce_bucket_size": 500_000}}
        | changes.get("deepspeed", {}),
    }
    file.write_text(yaml.safe_dump(document))
    return file


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The plans, and what one rank of each kind read."""
    folder = tmp_path_factory.mktemp("reference")
    files = {name: write_case(folder, name) for name in CASES}
    plans = {name: make_plan(load(file), every_rank=True) for name, file in files.items()}
    asked = [(name, rank) for name, plan in plans.items() for rank in plan.ranks]
    runs = [(files[name].read_text(), CASES[name][0], rank.rank, STEPS) for name, rank in asked]
    (results,) = run_ranks(WORKER, {"runs": runs}, ranks=1, timeout_seconds=900)
    told = {}
    for (name, rank), result in zip(asked, results, strict=True):
        told.setdefault(name, []).append((rank, result))
    return told


def by_phase(result):
    """(peak, end) of each phase as the plan names them."""
    assert result["outcome"] == "done", result["failure"]
    phases = {}
    for reading in result["readings"]:
        name = PHASES.get(reading["phase"], reading["phase"])
        key = f"first_{name}" if reading["step"] == 0 else name
        peak, _ = phases.get(key, (0, 0))
        phases[key] = (max(peak, reading["peak_bytes"]), reading["end_bytes"])
    return phases


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_what_deepspeed_allocates(measured, name):
    wrong = [
        f"rank {rank.rank} {phase.phase}: planned {planned:,}, measured {real:,} ({what})"
        for rank, result in measured[name]
        for phase in rank.phases
        for what, planned, real in zip(
            ("peak", "end"),
            (phase.peak_bytes, phase.end_bytes),
            by_phase(result)[phase.phase],
            strict=True,
        )
        if abs(planned - real) > SCALARS_BYTES
    ]
    assert not wrong, "\n".join(wrong)
