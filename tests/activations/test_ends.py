"""A micro-batch leaves nothing behind but what the training loop holds, whatever recomputes it."""

from pathlib import Path

import pytest

from planner.activations.eager import Machine, Tensor
from planner.activations.eager.pieces import repeat_heads
from planner.activations.layers import stage_tapes
from planner.memory.terms import Term
from planner.model.load import load_model
from planner.spec.deepspeed import DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Training

MODEL = load_model(
    {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
    },
    folder=Path(),
)
LAYERS = tuple(placed.layer for placed in MODEL.placed())
RUNS = [
    (implementation, recompute)
    for implementation in ("hf", "megatron", "reference")
    for recompute in ("none", "selective", "full")
    if (implementation, recompute) != ("hf", "selective")
]


def sums(layers, *, pp, attention, implementation, recompute):
    training = Training(
        sequence_length=16,
        micro_batch_size=2,
        attention=attention,
        implementation=implementation,
        recompute=recompute,
    )
    tapes = stage_tapes(
        layers,
        model=MODEL,
        training=training,
        layout=Layout(dp=1, pp=pp),
        deepspeed=DeepSpeed(),
    )
    left = dict.fromkeys(Term, 0)
    for tape in tapes:
        for part in (*tape.forward, *tape.backward):
            for term, size in part.net:
                left[term] += size
    left[Term.LOGITS] -= tapes[-1].held_bytes
    return {term: size for term, size in left.items() if size}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("implementation", "recompute"), RUNS)
@pytest.mark.parametrize("pp", [1, 2])
def test_a_micro_batch_ends_where_it_began(implementation, recompute, attention, pp):
    assert (
        sums(
            LAYERS,
            pp=pp,
            attention=attention,
            implementation=implementation,
            recompute=recompute,
        )
        == {}
    )


def test_a_head_that_is_repeated_is_copied_though_it_is_alone():
    # torch.zeros(2, 5, 1, 8).repeat_interleave(4, dim=2) has a storage of 2 * 5 * 4 * 8 elements.
    machine = Machine(backend="cpu", in_place=True, modules=False)
    alone = machine.uncounted((2, 5, 1, 8), "bf16")
    wide: Tensor = repeat_heads(alone, 4)
    assert wide.shape == (2, 5, 4, 8)
    assert wide.storage.size == 2 * 2 * 5 * 4 * 8
