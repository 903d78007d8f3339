"""Tapes under AutoTP and Ulysses equal DeepSpeed's own, allocation by allocation."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("deepspeed")
pytest.importorskip("transformers")

from planner.model.load import load_model
from planner.spec.layout import Layout
from tests.real.activations_measure import (
    TOKENS,
    VOCABULARY,
    Allocation,
    Setting,
    difference,
    large,
    predicted,
)
from tests.real.harness import run_ranks

pytestmark = pytest.mark.real

WORKER = Path(__file__).with_name("worker_parallel.py")
LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
}
STEM = 10
INDICES = 2600
"""Bytes of position ids and labels that a caller of Ulysses makes or leaves to the model."""


def _compared(axis: str, model: dict[str, Any], layout: Layout, ranks: int) -> list[str]:
    case = {"axis": axis, "model": model, "ranks": ranks}
    (measured,) = run_ranks(WORKER, case, ranks=1, timeout_seconds=600)
    described = load_model(model | {"architectures": ["LlamaForCausalLM"]}, folder=Path())
    ours = large(predicted(described, Setting(), layout=layout, tokens=TOKENS))
    slack = INDICES if axis == "sp" else 0
    real = large([Allocation(*entry) for entry in measured])
    return difference(real, ours, stem=STEM, slack=slack)


@pytest.mark.parametrize(
    "more", [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}]
)
def test_autotp(more: dict[str, Any]) -> None:
    assert _compared("tp", LLAMA | more, Layout(dp=1, tp=2), 2) == []


@pytest.mark.parametrize("groups", [8, 2, 1])
def test_ulysses(groups: int) -> None:
    model = LLAMA | {"num_key_value_heads": groups}
    assert _compared("sp", model, Layout(dp=1, sp=2), 2) == []
