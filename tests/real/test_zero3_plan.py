"""Plans of whole files under ZeRO-3 against real training, two ranks, every phase, to the byte.

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

WORKER = Path(__file__).with_name("worker_zero3_plan.py")
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
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 32}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 256,
    "n_layer": 3,
    "n_head": 8,
    "vocab_size": 2048,
    "n_positions": 128,
    "attn_pdrop": 0.0,
}
MIXTRAL = LLAMA | {
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
}
QWEN3_MOE = QWEN3 | {
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 3,
    "mlp_only_layers": [0],
}
THREE = {"global_batch_size": 12}
FULL = {"recompute": "full"}
TIGHT = {
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 200_000,
    "stage3_max_reuse_distance": 300_000,
}

CASES = {
    "llama": (LLAMA, {}, {}),
    "llama, three micro-steps": (LLAMA, THREE, {}),
    "llama, recompute": (LLAMA, FULL, {}),
    "llama, recompute, tight": (LLAMA, FULL | THREE, TIGHT),
    "llama, tight": (LLAMA, {}, TIGHT),
    "llama, nothing persistent": (LLAMA, {}, {"stage3_param_persistence_threshold": 0}),
    "llama, few persistent": (LLAMA, {}, {"stage3_model_persistence_threshold": 1000}),
    "llama, no reuse": (LLAMA, THREE, {"stage3_max_reuse_distance": 0}),
    "llama, few live": (LLAMA, {}, {"stage3_max_live_parameters": 500_000}),
    "llama, sub-groups": (LLAMA, {}, {"sub_group_size": 300_000}),
    "llama, no overlap": (LLAMA, {}, {"overlap_comm": False}),
    "llama, not contiguous": (LLAMA, {}, {"contiguous_gradients": False}),
    "llama, second partitions": (LLAMA, {}, {"zero_hpz_partition_size": 2}),
    "llama, fp32": (LLAMA, {"precision": "fp32"}, {}),
    "llama, eager attention": (LLAMA, {"attention": "eager"}, {}),
    "tied": (LLAMA | {"tie_word_embeddings": True}, {}, {}),
    "tied, three micro-steps, tight": (LLAMA | {"tie_word_embeddings": True}, THREE, TIGHT),
    "qwen3": (QWEN3, {}, TIGHT),
    "gpt2": (GPT2, {}, {}),
    "mixtral": (MIXTRAL, {}, {}),
    "mixtral, recompute": (MIXTRAL, FULL, TIGHT),
    "qwen3_moe": (QWEN3_MOE, {}, TIGHT),
}


def write_case(folder, name):
    model, training, zero = CASES[name]
    file = folder / f"{list(CASES).index(name)}.yaml"
    document = {
        "model": model,
        "cluster": {"nodes": 1, "devices_per_node": RANKS, "device": "cpu"},
        "training": {
            "sequence_length": 64,
            "micro_batch_size": 2,
            "global_batch_size": 4,
            "optimizer_kernel": "loop",
        }
        | training,
        "layout": {"zero_stage": 3},
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
