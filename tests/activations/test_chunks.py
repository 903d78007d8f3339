"""Checkpoints of several blocks: what must hold whatever their length."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from planner.activations.chunks import chunks
from planner.activations.layers import stage_tapes
from planner.memory.terms import Term
from planner.model.load import load_model
from planner.spec.deepspeed import DeepSpeed, Pipeline
from planner.spec.layout import Layout
from planner.spec.training import Training

BLOCKS, B, S, H = 6, 2, 16, 64
MODEL = load_model(
    {
        "model_type": "llama",
        "hidden_size": H,
        "intermediate_size": 128,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
    },
    folder=Path(),
)
LAYERS = tuple(placed.layer for placed in MODEL.placed())
TRAINING = Training(
    sequence_length=S, micro_batch_size=B, implementation="reference", recompute="full"
)


def facts(interval, pp=2):
    deepspeed = DeepSpeed(pipeline=Pipeline(activation_checkpoint_interval=interval))
    return {"training": TRAINING, "layout": Layout(dp=1, pp=pp), "deepspeed": deepspeed}


def tapes(layers, interval):
    return stage_tapes(layers, model=MODEL, backend="cpu", **facts(interval))


def by_term(tape):
    sums = dict.fromkeys(Term, 0)
    for part in (*tape.forward, *tape.backward):
        for term, size in part.net:
            sums[term] += size
    return {term: size for term, size in sums.items() if size}


def kept(tape):
    return sum(size for part in tape.forward for term, size in part.net if term == Term.ACTIVATIONS)


@given(
    interval=st.integers(0, 10),
    first=st.integers(0, len(LAYERS) - 1),
    count=st.integers(1, len(LAYERS)),
    pp=st.integers(1, 3),
)
def test_every_layer_is_in_one_chunk(interval, first, count, pp):
    layers = LAYERS[first : first + count]
    made = chunks(layers, **facts(interval, pp))
    places = [place for chunk in made for a, b in chunk.passes for place in range(a, b + 1)]
    assert places == list(range(len(layers)))
    longest = interval if interval and pp > 1 else 1
    assert all(chunk.last - chunk.first < longest for chunk in made)
    for chunk in made:
        kinds = {layer.kind for layer in layers[chunk.first : chunk.last + 1]}
        assert chunk.checkpoint == (kinds == {"block"})


@given(interval=st.integers(1, BLOCKS))
def test_a_checkpoint_ends_what_it_begins_and_hands_over_every_gradient_once(interval):
    for tape in tapes(LAYERS[1:-2], interval):
        assert by_term(tape) == {}
        marks = [part.mark for part in tape.backward if part.mark and part.mark.kind == "gradient"]
        number = len(tape.firsts) * len(LAYERS[1].parameters)
        assert sorted(mark.parameters[0] for mark in marks) == list(range(number))


@given(interval=st.integers(1, BLOCKS))
def test_blocks_keep_one_input_a_checkpoint(interval):
    input_bytes = 2 * B * S * H
    assert [kept(tape) for tape in tapes(LAYERS[1:-2], interval)] == [input_bytes] * -(
        -BLOCKS // interval
    )
