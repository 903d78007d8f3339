"""Adapters and four-bit weights: counts by hand."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.model.adapters import Tuning, constants_bytes, stored_bytes, tuned
from planner.model.load import load_model

ATTENTION = frozenset({"attention.q", "attention.k", "attention.v", "attention.o"})


def test_mistral_has_thirteen_million_adapter_parameters():
    """Rank 16 beside q, k, v and o: what peft 0.13 prints for Mistral-7B."""
    model = load_model("mistral-7b-v0.1", folder=Path())
    made = tuned(model, Tuning(rank=16, targets=ATTENTION))
    trained = sum(p.numel for p in made.parameters() if p.trained)
    assert trained == 13_631_488
    assert sum(p.numel for p in made.parameters() if not p.trained) == model.num_parameters


def test_what_is_trained_whole_is_there_twice():
    """``modules_to_save`` of peft: the embedding and the head, each beside its original."""
    model = load_model("mistral-7b-v0.1", folder=Path())
    ends = frozenset({"embedding", "head"})
    made = tuned(model, Tuning(rank=16, targets=ATTENTION, trained=ends))
    frozen = sum(p.numel for p in made.parameters() if not p.trained)
    trained = sum(p.numel for p in made.parameters() if p.trained)
    assert trained == 13_631_488 + 2 * 32000 * 4096
    assert frozen == model.num_parameters


def test_layers_that_are_one_object_stay_so():
    made = tuned(load_model("tinyllama-1.1b", folder=Path()), Tuning(rank=8, targets=ATTENTION))
    assert len({id(placed.layer) for placed in made.blocks}) == 1


@pytest.mark.parametrize(
    ("stored", "size"),
    [
        ("model", 2 * 16384),
        ("fp32", 4 * 16384),
        ("nf4", 8192 + 4 * 256),
        ("nf4_double", 8192 + 256 + 4),
        ("gptq", 8192 + 128 * 2 + 64),
    ],
)
def test_sixteen_thousand_elements(stored, size):
    """bitsandbytes: a maximum every 64, itself in 8 bits; GPTQ: a scale and a zero every 128."""
    assert stored_bytes(16384, stored, 2) == size


@given(st.integers(1, 10**9))
def test_double_quantisation_saves_constants_and_four_bits_save_weights(numel):
    double, single = (constants_bytes(numel, kind) for kind in ("nf4_double", "nf4"))
    assert 0 < double <= single + 4
    assert stored_bytes(numel, "nf4", 2) < 2 * numel + 8
