"""What is said about the passes' activations, against how a pipeline cuts its checkpoints."""

from dataclasses import replace
from pathlib import Path

import pytest

from planner.memory.terms import Term
from planner.model.load import load_model
from planner.plan import notes_of_passes
from planner.spec.deepspeed import Pipeline
from planner.spec.load import load

QWEN = Path(__file__).parents[2] / "cluster_configs" / "qwen2-72b-64xh100.yaml"
INPUT_BYTES = 4096 * 8192 * 2
"""Hidden states of a micro-batch."""


def told(interval, rank):
    spec = load(QWEN)
    pipeline = Pipeline(activation_checkpoint_interval=interval)
    spec = replace(spec, deepspeed=replace(spec.deepspeed, pipeline=pipeline))
    notes = notes_of_passes(spec, rank, load_model(spec.model, folder=spec.folder))
    return [note.formula for note in notes if note.term is Term.ACTIVATIONS]


@pytest.mark.parametrize(
    ("interval", "rank", "kept"),
    [
        (0, 0, [f"19 blocks, of each kept: input {INPUT_BYTES:,} B"]),
        (2, 16, [
            f"10 checkpoints of 2 blocks, of each kept: input {INPUT_BYTES:,} B",
            f"1 blocks, of each kept: input {INPUT_BYTES:,} B",
        ]),
    ],
)  # fmt: skip
def test_a_checkpoint_keeps_its_input(interval, rank, kept):
    assert told(interval, rank) == kept


def test_a_block_beside_the_stem_is_no_checkpoint():
    plain, checkpoints = told(2, 0)
    assert plain.startswith("1 blocks")
    assert "mlp" in plain
    assert checkpoints == f"9 checkpoints of 2 blocks, of each kept: input {INPUT_BYTES:,} B"
