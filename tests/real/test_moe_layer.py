"""DeepSpeed's MoE layer in a transformer: names, allocations one by one, and steps under ZeRO.

Each rank runs on its own, with collectives that return at once. What the tapes leave out, by name:
the balance loss and the counts of tokens that each layer keeps from pass to pass (8 B an expert
and 4), scalars, and, in the gate's backward pass, when vectors of one fp32 number a token end.
"""

from pathlib import Path

import pytest
import yaml

pytest.importorskip("deepspeed")

from planner.layout.cut import registered_parameters, stages
from planner.model.load import load_model
from planner.plan import make_plan
from planner.spec.load import load
from tests.real.harness import run_ranks

pytestmark = pytest.mark.real

WORKER = Path(__file__).with_name("worker_moe_layer.py")
RANKS, STEPS = 2, 3
UNNAMED_BYTES = 512
"""In whole plans: buffers that are no parameters, and what is named above."""
INDICES_BYTES = 1100
"""Allocations up to this size are index vectors and scalars; the stem's are the first three."""
STEM = 3
VECTORS_BYTES = 1024

MODEL = {
    "model_type": "qwen3_moe", "hidden_size": 128, "intermediate_size": 256,
    "moe_intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2,
    "vocab_size": 512, "norm_topk_prob": True, "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}  # fmt: skip
BUCKETS = {"reduce_bucket_size": 200_000, "allgather_bucket_size": 200_000}


def case(what, *, model=None, training=None, layout=None, moe=None):
    return what, MODEL | (model or {}), training or {}, layout or {}, moe or {}


TRACES = {
    **{
        f"top-{k}, ep {ep}": case("trace", model={"num_experts_per_tok": k}, layout={"ep": ep})
        for k in (1, 2, 3)
        for ep in (1, 2)
    },
    "fp32": case("trace", training={"precision": "fp32"}),
    "recompute": case("trace", training={"recompute": "full"}, layout={"ep": 2}),
    "top-1, noise, no chance": case(
        "trace",
        model={"num_experts_per_tok": 1},
        moe={"use_rts": False, "noisy_gate_policy": "RSample"},
    ),
    "jitter, roomier": case(
        "trace",
        moe={
            "noisy_gate_policy": "Jitter",
            "capacity_factor": 1.7,
            "top2_2nd_expert_sampling": False,
        },
    ),
    **{
        f"top-{k}, nothing dropped": case(
            "trace", model={"num_experts_per_tok": k}, moe={"drop_tokens": False}
        )
        for k in (1, 2, 3)
    },
}
TRAININGS = {
    **{
        f"zero-{stage}, ep {ep}": case(
            "train",
            model={"num_hidden_layers": 2},
            layout={"ep": ep, "zero_stage": stage},
        )
        for stage in (0, 1, 2)
        for ep in (1, 2)
    },
    "zero-0, tensor by tensor": case(
        "train", training={"optimizer_kernel": "loop"}, layout={"ep": 2, "zero_stage": 0}
    ),
    "zero-1, fp32": case(
        "train", training={"precision": "fp32"}, layout={"ep": 2, "zero_stage": 1}
    ),
}
CASES = TRACES | TRAININGS


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moe")
    cases = []
    for number, (what, entry, training, layout, moe) in enumerate(CASES.values()):
        file = folder / f"{number}.yaml"
        document = {
            "model": entry,
            "cluster": {"nodes": 1, "devices_per_node": RANKS, "device": "cpu"},
            "training": {"sequence_length": 64, "micro_batch_size": 2} | training,
            "layout": layout,
            "deepspeed": {"expert_engine": "moe", "moe": moe, "zero_optimization": BUCKETS},
        }
        file.write_text(yaml.safe_dump(document))
        cases.append({"file": str(file), "what": what, "entry": entry, "steps": STEPS})
    results = run_ranks(WORKER, cases, ranks=RANKS, timeout_seconds=580)
    return {
        name: (Path(cases[at]["file"]), [rank[at] for rank in results])
        for at, name in enumerate(CASES)
    }


@pytest.mark.parametrize("name", TRACES)
def test_every_allocation_is_the_tapes(measured, name):
    _, ranks = measured[name]
    for rank in ranks:
        real, ours = (
            [entry for entry in rank[whose] if entry[0] > INDICES_BYTES]
            for whose in ("real", "ours")
        )
        assert [size for size, _ in real] == [size for size, _ in ours]
        pairs = list(zip(real, ours, strict=True))[STEM:]
        apart = [(a, b) for a, b in pairs if abs(a[1] - b[1]) > VECTORS_BYTES]
        assert not apart, apart[:6]
        assert abs(max(a[1] for a in real) - max(b[1] for b in ours)) <= INDICES_BYTES


@pytest.mark.parametrize("name", TRACES)
def test_parameters_have_the_names_and_the_order_of_the_layout(measured, name):
    file, ranks = measured[name]
    spec = load(file)
    model = load_model(spec.model, folder=file.parent)
    (stage,) = stages(model, spec.layout, spec.training, spec.deepspeed)
    prefixes = [
        stage.layers[index].placed.prefix
        for index in stage.registered
        for _ in stage.layers[index].parameters
    ]
    described = [
        [prefix + own.name, own.numel, own.expert]
        for prefix, own in zip(prefixes, registered_parameters(stage), strict=True)
    ]
    for rank in ranks:
        assert rank["parameters"] == described


def by_phase(readings):
    """(peak, end) of each phase as the plan names them: the first step, and the last."""
    phases = {}
    for reading in readings:
        step, _, name = reading["phase"].rpartition(".")
        if step in {"", "0", str(STEPS - 1)}:
            key = f"first_{name}" if step == "0" else name
            phases[key] = (reading["peak_bytes"], reading["end_bytes"])
    return phases


@pytest.mark.parametrize("name", TRAININGS)
def test_a_plan_is_what_deepspeed_allocates(measured, name):
    file, ranks = measured[name]
    plan = make_plan(load(file), every_rank=True)
    wrong = [
        f"rank {rank.rank} {phase.phase}: planned {phase.peak_bytes:,} and {phase.end_bytes:,}, "
        f"measured {real}"
        for rank in plan.ranks
        for phase in rank.phases
        for real in [by_phase(ranks[rank.rank]["readings"])[phase.phase]]
        if abs(phase.peak_bytes - real[0]) > UNNAMED_BYTES
        or abs(phase.end_bytes - real[1]) > UNNAMED_BYTES
    ]
    assert sum(rank.num_ranks for rank in plan.ranks) == RANKS
    assert not wrong, "\n".join(wrong)
