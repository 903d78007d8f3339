"""ZeRO 0, 1 and 2 under the real DeepSpeed, on the CPU, phase by phase and rank by rank.

Beyond what the strategies book, DeepSpeed and the loop hold scalars: the loss, norms, step counts.
"""

from pathlib import Path

import pytest

from planner.engines.deepspeed.below_three import below_three
from tests.engines.drive import drive, make_setup, phases

pytestmark = pytest.mark.real

SCALARS_BYTES = 160
SHAPES = [[301, 77], [1001], [64, 64], [333], [500, 700], [77], [123, 45], [90001]]
"""Odd sizes, of which two are larger than the bucket, and most straddle a boundary somewhere."""
BUCKET = {"reduce_bucket_size": 50_000}
EXPERTS = {"experts": [2, 4, 6, 7], "ep": 2}
STEPS = 2

# Stage, ranks, and what differs from bf16, one micro-step, one group, torch's fused AdamW.
CASES = [
    (1, 2, {}),
    (1, 2, {"micro_steps": 3}),
    (2, 4, {"micro_steps": 3}),
    (1, 2, {"micro_steps": 2, "zero": {"overlap_comm": True}}),
    (2, 2, {"micro_steps": 2, "zero": {"overlap_comm": True}}),
    (1, 3, {"micro_steps": 2, "zero": {"contiguous_gradients": False, "overlap_comm": True}}),
    (2, 2, {"micro_steps": 2, "zero": {"contiguous_gradients": False}}),
    (2, 2, {"micro_steps": 2, "zero": {"contiguous_gradients": False, "overlap_comm": True}}),
    (2, 4, {"micro_steps": 2, "groups": "weight_decay", "zero": {"reduce_bucket_size": 5000000}}),
    (1, 4, {"micro_steps": 2, "groups": "weight_decay", "zero": {"round_robin_gradients": True}}),
    (2, 2, {"micro_steps": 2, "zero": {"reduce_scatter": False}}),
    (2, 2, {"micro_steps": 2, "communication_data_type": "fp32"}),
    (2, 2, {"precision": "fp32", "micro_steps": 2}),
    (1, 4, {"precision": "fp32", "micro_steps": 2, "groups": "weight_decay"}),
    (2, 2, {"precision": "fp16", "micro_steps": 2}),
    (2, 3, {"micro_steps": 2, "grad_accum_dtype": "fp32", "zero": {"reduce_scatter": False}}),
    (2, 3, {"micro_steps": 2, "grad_accum_dtype": "fp32", "groups": "weight_decay"}),
    (2, 3, {"grad_accum_dtype": "fp32", "zero": {"contiguous_gradients": False}}),
    (1, 2, {"precision": "fp16", "micro_steps": 2, "grad_accum_dtype": "fp32"}),
    (
        1,
        3,
        {
            "precision": "fp16",
            "grad_accum_dtype": "fp32",
            "groups": "weight_decay",
            "zero": {"overlap_comm": True},
        },
    ),
    (2, 2, {"kernel": "loop"}),
    (2, 2, {"kernel": "foreach"}),
    (2, 2, {"optimizer": "sgd", "kernel": "foreach"}),
    (2, 2, {"optimizer": "sgd", "kernel": "loop"}),
    (1, 2, {"micro_steps": 2, "grad_accum_dtype": "fp32"}),
    (1, 3, {"grad_accum_dtype": "fp32", "groups": "weight_decay", "kernel": "loop"}),
    (1, 3, {"grad_accum_dtype": "fp32", "communication_data_type": "fp32"}),
    (0, 2, {"precision": "fp32", "micro_steps": 2}),
    (0, 2, {"precision": "fp32", "kernel": "foreach", "groups": "weight_decay"}),
    (0, 2, {"micro_steps": 2, "kernel": "stand_in"}),
    (0, 2, {"kernel": "stand_in", "groups": "weight_decay", "communication_data_type": "fp32"}),
    (0, 2, {"precision": "fp16", "kernel": "stand_in"}),
    (0, 2, {"micro_steps": 2, "kernel": "loop", "groups": "weight_decay"}),
    (0, 2, {"kernel": "foreach"}),
    (0, 4, {"kernel": "stand_in", **EXPERTS}),
    (1, 4, {"micro_steps": 2, **EXPERTS}),
    (1, 4, {"grad_accum_dtype": "fp32", **EXPERTS}),
    (2, 4, {"micro_steps": 3, "groups": "weight_decay", **EXPERTS}),
    (2, 4, {"grad_accum_dtype": "fp32", **EXPERTS}),
    (2, 2, {"offload": True}),
    (2, 3, {"offload": True, "micro_steps": 3}),
    (1, 2, {"offload": True, "micro_steps": 2}),
    (2, 3, {"offload": True, "precision": "fp32", "micro_steps": 2}),
    (1, 2, {"offload": True, "micro_steps": 2, "grad_accum_dtype": "fp32"}),
]


def config(stage, options):
    """DeepSpeed's configuration of a case."""
    precision = options.get("precision", "bf16")
    zero = {"stage": stage, **BUCKET, **options.get("zero", {})}
    if options.get("offload"):
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": options.get("micro_steps", 1),
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**6,
        **({} if precision == "fp32" else {precision: {"enabled": True}}),
        "data_types": {"grad_accum_dtype": options.get("grad_accum_dtype")},
        "communication_data_type": options.get("communication_data_type"),
    }


def worker_case(stage, ranks, options):
    """What worker_zero.py is told."""
    keys = ("precision", "groups", "optimizer", "kernel", "experts", "ep")
    told = {key: options[key] for key in keys if key in options}
    return {
        "shapes": SHAPES,
        "ranks": ranks,
        "precision": "bf16",
        "config": config(stage, options),
        "steps": STEPS,
        **told,
    }


def strategy_of(stage, ranks, options):
    """The setup of a case and our strategy for it."""
    kernel = options.get("kernel", "fused")
    setup = make_setup(
        SHAPES,
        dp=ranks,
        stage=stage,
        training={
            "precision": options.get("precision", "bf16"),
            "optimizer": options.get("optimizer", "adamw"),
            "optimizer_kernel": "fused" if kernel == "stand_in" else kernel,
            "parameter_groups": options.get("groups", "one"),
        },
        zero=BUCKET | options.get("zero", {}),
        **{
            key: options[key]
            for key in (
                "micro_steps",
                "experts",
                "ep",
                "offload",
                "grad_accum_dtype",
                "communication_data_type",
            )
            if key in options
        },
    )
    return setup, below_three(setup)


@pytest.fixture(scope="module")
def readings():
    """All cases in one process tree, so that torch and DeepSpeed are imported once."""
    pytest.importorskip("deepspeed")
    from tests.real.harness import run_ranks

    worker = Path(__file__).with_name("worker_zero.py")
    cases = [worker_case(*case) for case in CASES]
    return run_ranks(worker, cases, ranks=1, timeout_seconds=900)[0]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{CASES[n]}")
def test_every_phase_of_every_rank_is_as_measured(readings, number):
    stage, ranks, options = CASES[number]
    setup, strategy = strategy_of(stage, ranks, options)
    timeline = drive(strategy, setup, steps=STEPS)
    for rank in range(ranks):
        measured = readings[number][rank]
        assert isinstance(measured, list), measured
        for reading in measured:
            name = reading["phase"]
            predicted = phases(timeline, rank, options.get("ep", 1))[name]
            host = sum(strategy.host_bytes(rank).values())
            if host and name.startswith(("init", "0.")):
                continue  # the host fills up during initialisation and the first step
            where = f"rank {rank}, {name}: {predicted.terms}"
            end = reading["end_bytes"] - predicted.end_bytes - host
            assert 0 <= end <= SCALARS_BYTES, where
            if host and name.endswith("step"):
                continue  # the host's own temporaries count as much as the device's here
            peak = reading["peak_bytes"] - predicted.peak_bytes - host
            assert 0 <= peak <= SCALARS_BYTES, where


def test_gloo_ranks_that_really_communicate_hold_the_same():
    pytest.importorskip("deepspeed")
    from tests.real.harness import run_ranks

    options = {"micro_steps": 2}
    case = worker_case(2, 2, options)
    measured = run_ranks(Path(__file__).with_name("worker_zero.py"), case, ranks=2)
    setup, strategy = strategy_of(2, 2, options)
    timeline = drive(strategy, setup, steps=STEPS)
    for rank in range(2):
        found = phases(timeline, rank)
        for reading in measured[rank]:
            if reading["phase"].endswith("step"):
                end = reading["end_bytes"] - found[reading["phase"]].end_bytes
                assert 0 <= end <= SCALARS_BYTES
