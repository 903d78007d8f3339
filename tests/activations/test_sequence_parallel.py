"""Megatron's sequence parallelism through whole layers: arXiv:2205.05198, section 4.2.2.

Equation 4 divides everything that equation 1 counts by t: each rank keeps an equal share.
"""

from pathlib import Path

import pytest

from planner.activations.layers import layer_tape, saved_by_component, stage_tapes
from planner.memory.terms import Term
from planner.model.load import load_model
from planner.spec.deepspeed import DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Training

S, B, H = 64, 2, 64
MODEL = load_model(
    {
        "model_type": "llama",
        "hidden_size": H,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 512,
    },
    folder=Path(),
)


def told(tp, *, sequence_parallel=True, **training):
    return {
        "model": MODEL,
        "training": Training(
            sequence_length=S,
            micro_batch_size=B,
            implementation="megatron",
            sequence_parallel=sequence_parallel and tp > 1,
            attention="eager",
            **training,
        ),
        "layout": Layout(dp=1, tp=tp),
        "deepspeed": DeepSpeed(),
    }


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_equation_4_divides_all_that_a_block_keeps(tp, recompute):
    block = MODEL.blocks[1].layer
    whole = sum(saved_by_component(block, **told(1, recompute=recompute)).values())
    share = sum(saved_by_component(block, **told(tp, recompute=recompute)).values())
    assert share * tp == whole


@pytest.mark.parametrize("tp", [2, 4])
def test_what_layers_hand_on_is_a_share(tp):
    for layer in (MODEL.stem.layer, MODEL.blocks[0].layer, MODEL.tail[0].layer):
        assert layer_tape(layer, **told(tp)).output_bytes == 2 * B * S * H // tp


def test_the_head_keeps_its_share_of_the_tokens():
    head = MODEL.tail[-1].layer
    saved = [
        saved_by_component(head, **told(2, sequence_parallel=on)).get("", 0) for on in (False, True)
    ]
    assert saved == [2 * B * S * H, 2 * B * S * H // 2]


@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_a_pass_ends_where_it_began(recompute):
    layers = tuple(placed.layer for placed in MODEL.placed())
    tapes = stage_tapes(layers, **told(2, recompute=recompute))
    total = {}
    for tape in tapes:
        for segment in (*tape.forward, *tape.backward):
            for term, size in segment.net:
                total[term] = total.get(term, 0) + size
    held = sum(tape.held_bytes for tape in tapes)
    assert {term: size for term, size in total.items() if size} == {Term.LOGITS: held}
