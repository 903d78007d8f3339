"""What DeepSpeed's MoE layer saves, by hand: room for tokens and what experts make of them."""

from dataclasses import replace
from fractions import Fraction
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.activations.layers import layer_tape, run_once
from planner.model.load import load_model
from planner.spec.deepspeed import DeepSpeed, MoeLayer
from planner.spec.layout import Layout
from planner.spec.training import Training

BATCH, LENGTH = 2, 32
TOKENS = BATCH * LENGTH
HIDDEN, FFN, EXPERTS = 64, 96, 4


def model(top_k):
    entry = {
        "model_type": "mixtral",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": top_k,
        "vocab_size": 128,
        "max_position_embeddings": 64,
    }
    return load_model(entry, folder=Path())


def case(top_k, *, ep=1, imbalance=1.0, **rules):
    made = model(top_k)
    training = Training(sequence_length=LENGTH, micro_batch_size=BATCH, expert_imbalance=imbalance)
    return {
        "layer": made.blocks[0].layer,
        "model": made,
        "training": training,
        "layout": Layout(dp=2, ep=ep, zero_stage=1),
        "deepspeed": DeepSpeed(expert_engine="moe", moe=MoeLayer(**rules)),
    }


def saved_bytes(**options):
    run = run_once(**options)
    return sum(run.machine.sizes[index] for index in run.saved)


def peak_bytes(**options):
    """The highest point of the forward pass, and of the backward pass that follows."""
    peaks = []
    tape = layer_tape(**options)
    now = 0
    for segments in (tape.forward, tape.backward):
        peak = now
        for segment in segments:
            peak = max(peak, now + sum(size for _, size in segment.peak))
            now += sum(size for _, size in segment.net)
        peaks.append(peak)
    return peaks


def room(top_k, factor):
    """C of GShard's equation: ceil(S / E * factor * K), but no less than ``min_capacity``'s 4."""
    return max(4, ceil(Fraction(TOKENS, EXPERTS) * Fraction(factor) * top_k))


EXACT = st.sampled_from([0.125, 0.5, 1.0, 1.25, 1.5, 1.75, 2.0])
"""Numbers that fp32 holds as they are."""
CHOSEN = st.sampled_from([1, 2, 3])


@given(factors=st.tuples(EXACT, EXACT).map(sorted), top_k=CHOSEN, ep=st.sampled_from([1, 2]))
def test_each_place_saves_its_token_and_the_experts_products(factors, top_k, ep):
    """In bf16 the input, and gate, its activation, up and their product; a row number in int64.

    From several ranks tokens come in pieces, of which both projections make their own copy.
    """
    less, more = (saved_bytes(**case(top_k, ep=ep, capacity_factor=factor)) for factor in factors)
    places = EXPERTS * (room(top_k, factors[1]) - room(top_k, factors[0]))
    inputs = 2 if ep > 1 else 1
    assert more - less == places * (inputs * 2 * HIDDEN + 4 * 2 * FFN + 8)


@given(factors=st.tuples(EXACT, EXACT).map(sorted), top_k=CHOSEN)
def test_more_room_is_never_less_memory(factors, top_k):
    peaks = [peak_bytes(**case(top_k, capacity_factor=factor)) for factor in factors]
    assert all(less <= more for less, more in zip(*peaks, strict=True))


@given(top_k=CHOSEN, imbalance=st.sampled_from([1.0, 1.5, 4.0, 100.0]))
def test_without_dropping_the_fullest_expert_makes_the_room(top_k, imbalance):
    """It takes its share of all routes, and no more than every token once."""
    fullest = min(TOKENS, ceil(Fraction(TOKENS * top_k, EXPERTS) * Fraction(imbalance)))
    as_factor = Fraction(fullest * EXPERTS, TOKENS * top_k)
    free = saved_bytes(**case(top_k, imbalance=imbalance, drop_tokens=False))
    full = saved_bytes(**case(top_k, capacity_factor=float(as_factor), min_capacity=fullest))
    if top_k < 3:  # with three the gate saves what it drops by, too
        assert free == full
    else:
        assert free <= full


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_noise_is_not_kept(top_k):
    plain = case(top_k)
    noisy = replace(plain["deepspeed"].moe, noisy_gate_policy="RSample")
    noisy_case = plain | {"deepspeed": replace(plain["deepspeed"], moe=noisy)}
    assert saved_bytes(**noisy_case) == saved_bytes(**plain)
