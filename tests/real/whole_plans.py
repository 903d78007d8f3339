"""Whole plans of the reference transformer, and what its ranks read when each runs alone.

Collectives return at once; all ranks of all cases run one after the other in one process.
"""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from planner.engines.deepspeed.pipeline import PHASES
from planner.plan import make_plan
from planner.spec.load import load
from tests.real.harness import run_ranks

WORKER = Path(__file__).with_name("worker_reference.py")
STEPS = 2
SCALARS_BYTES = 128
"""Losses, norms, scales and steps, which a plan leaves out."""

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


class Case(NamedTuple):
    """A file's sections that differ from `document`'s, for so many ranks."""

    ranks: int
    changes: dict[str, Any]


def document(case: Case) -> dict[str, Any]:
    """A file in bf16 under ZeRO-1, but for the case's changes."""
    training = {
        "sequence_length": 32,
        "micro_batch_size": 2,
        "global_batch_size": 6,
        "optimizer_kernel": "loop",
        "implementation": "reference",
    }
    return {
        "model": case.changes.get("model", LLAMA),
        "cluster": {"nodes": 1, "devices_per_node": case.ranks, "device": "cpu"},
        "training": training | case.changes.get("training", {}),
        "layout": {"zero_stage": 1} | case.changes.get("layout", {}),
        "deepspeed": {"zero_optimization": {"reduce_bucket_size": 50_000}}
        | case.changes.get("deepspeed", {}),
    }


def differences(
    cases: dict[str, Case], folder: Path, *, scalars_bytes: int = SCALARS_BYTES
) -> dict[str, list[str]]:
    """Where the plan of a case and its ranks' readings are further apart than some scalars."""
    asked = []
    for number, (name, case) in enumerate(cases.items()):
        file = folder / f"{number}.yaml"
        file.write_text(yaml.safe_dump(document(case)))
        asked += [(name, file, rank) for rank in make_plan(load(file), every_rank=True).ranks]
    runs = [(file.read_text(), cases[name].ranks, rank.rank, STEPS) for name, file, rank in asked]
    (results,) = run_ranks(WORKER, {"runs": runs}, ranks=1, timeout_seconds=900)
    found: dict[str, list[str]] = {name: [] for name in cases}
    for (name, _, rank), result in zip(asked, results, strict=True):
        measured = _by_phase(result)
        found[name] += [
            f"rank {rank.rank} {phase.phase}: planned {planned:,}, measured {real:,} ({what})"
            for phase in rank.phases
            for what, planned, real in zip(
                ("peak", "end"),
                (phase.peak_bytes, phase.end_bytes),
                measured[phase.phase],
                strict=True,
            )
            if abs(planned - real) > scalars_bytes
        ]
    return found


def _by_phase(result: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(peak, end) of each phase as the plan names them."""
    assert result["outcome"] == "done", result["failure"]
    phases: dict[str, tuple[int, int]] = {}
    for reading in result["readings"]:
        name = PHASES.get(reading["phase"], reading["phase"])
        key = f"first_{name}" if reading["step"] == 0 else name
        peak, _ = phases.get(key, (0, 0))
        phases[key] = (max(peak, reading["peak_bytes"]), reading["end_bytes"])
    return phases
