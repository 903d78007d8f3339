"""Megatron-Core's experts and latent attention: what is kept, by hand."""

from pathlib import Path

import pytest

from planner.activations.mcore import mcore_tape
from planner.memory.terms import Term
from planner.model.load import load_model
from planner.spec.layout import Layout
from planner.spec.megatron import Megatron
from planner.spec.training import Training

TOKENS, HIDDEN, WIDTH, EXPERTS = 2 * 1024, 512, 256, 8

MIXTRAL = {
    "model_type": "mixtral", "hidden_size": HIDDEN, "intermediate_size": WIDTH,
    "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8,
    "vocab_size": 1024, "num_local_experts": EXPERTS, "num_experts_per_tok": 2,
}  # fmt: skip

LATENT = {
    "model_type": "deepseek_v3", "hidden_size": HIDDEN, "intermediate_size": WIDTH,
    "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8,
    "vocab_size": 1024, "first_k_dense_replace": 2, "n_routed_experts": 2,
    "num_experts_per_tok": 1, "moe_intermediate_size": WIDTH, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 128, "kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32,
    "v_head_dim": 32,
}  # fmt: skip


def kept(keys, **options):
    model = load_model(keys, folder=Path())
    tape = mcore_tape(
        model.blocks[0].layer,
        model=model,
        training=Training(
            sequence_length=1024, micro_batch_size=2, implementation="megatron", dropout=False
        ),
        layout=Layout(dp=1),
        options=Megatron(**options),
    )
    whole: dict[Term, int] = {}
    saved = 0
    for segment in tape.forward:
        saved += dict(segment.net).get(Term.ACTIVATIONS, 0)
    for segment in (*tape.forward, *tape.backward):
        for term, size in segment.net:
            whole[term] = whole.get(term, 0) + size
    assert not any(whole.values())
    return saved


@pytest.mark.parametrize("ep", [1, 4, 8])
def test_a_row_more_keeps_its_input_and_twice_its_width_and_its_product(ep):
    """fc1's input (H), gate and up (2 F), fc2's input (F), two bytes each; a place a move."""
    more = MIXTRAL | {"num_experts_per_tok": 4}
    options = {"expert_model_parallel_size": ep}
    difference = kept(more, **options) - kept(MIXTRAL, **options)
    rows = 2 * TOKENS
    by_hand = rows * 2 * (HIDDEN + 3 * WIDTH)
    moves = difference - by_hand
    assert 0 <= moves <= rows * 4 * 6


def test_latent_attention_keeps_what_it_puts_together():
    """Two narrow inputs, their norms, q and k and v anew, the context twice: bytes by hand."""
    heads, size, value = 8, 48, 32
    together = heads * (2 * size + 2 * value) * 2
    narrow = 2 * (128 + 64) * 2
    rotated = 16 * 2
    block = 2 * HIDDEN * 2 + HIDDEN * 2 + 3 * WIDTH * 2 + HIDDEN * 2
    least = TOKENS * (together + narrow + rotated + block)
    assert kept(LATENT) == pytest.approx(least, rel=0.08)
