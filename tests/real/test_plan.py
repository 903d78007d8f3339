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
from planner.validate.compare import points
from planner.validate.job import Job, RankResult, as_document
from planner.validate.worker import read_spec
from tests.real.harness import run_ranks

pytestmark = pytest.mark.real

WORKER = Path(__file__).with_name("worker_plan.py")
RANKS, NUM_POINTS = 2, 14
UNNAMED_BYTES = 2048
"""Buffers and scalars, see above; the models hold tens of millions of bytes."""

RESIDENT = (
    "weights",
    "gradients",
    "owned_gradients",
    "master_weights",
    "optimizer_states",
    "buckets",
)

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


def spec_of(name):
    """The file of a case."""
    model, training, layout, zero = CASES[name]
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
    return yaml.safe_dump(document)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One start of the ranks runs all cases: importing DeepSpeed takes longer than training."""
    folder = str(tmp_path_factory.mktemp("plans"))
    jobs = [
        Job(spec=spec_of(name), folder=folder, num_ranks=RANKS, collectives="fake")
        for name in CASES
    ]
    told = run_ranks(WORKER, [as_document(job) for job in jobs], ranks=RANKS, timeout_seconds=540)
    return {
        name: (jobs[index], [RankResult.read(rank[index]) for rank in told])
        for index, name in enumerate(CASES)
    }


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_what_deepspeed_allocates(measured, name):
    job, results = measured[name]
    assert [result.failure for result in results] == [None] * RANKS
    many = points(make_plan(read_spec(job), every_rank=True), results)
    assert len(many) == RANKS * NUM_POINTS
    wrong = [
        f"rank {point.rank} {point.phase} {point.quantity}: planned {point.predicted_bytes:,}, "
        f"measured {point.measured_bytes:,}; {point.wrong_term}"
        for point in many
        if abs(point.error_bytes) > UNNAMED_BYTES
    ]
    assert not wrong, "\n".join(wrong)
    assert {error.term for _, error in resident_errors(many)} == set()


def resident_errors(many):
    """Terms of what stays that are off by a single byte when a phase is over."""
    return [
        (point, error)
        for point in many
        if point.quantity == "allocated"
        for term in RESIDENT
        if (error := point.term_error(term)).error_bytes
    ]
