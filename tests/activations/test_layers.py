"""Tapes of layers: published measurements, and what must hold whatever the sizes."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.activations.layers import layer_tape, saved_by_component, stage_tapes
from planner.activations.tape import LayerTape, Segment
from planner.memory.terms import Term
from planner.model.description import Layer, Model
from planner.model.load import load_model
from planner.spec.deepspeed import DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Training

S, B, H, A, G, F, V = 256, 2, 512, 8, 2, 1792, 4000
SBH = S * B * H


def llama(**more: Any) -> Model:
    return load_model(
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": H,
            "intermediate_size": F,
            "num_hidden_layers": 2,
            "num_attention_heads": A,
            "num_key_value_heads": G,
            "vocab_size": V,
        }
        | more,
        folder=Path(),
    )


def arguments(model: Model, layout: Layout | None = None, **training: Any) -> dict[str, Any]:
    given_training = Training(sequence_length=S, micro_batch_size=B, **training)
    return {
        "model": model,
        "training": given_training,
        "layout": layout or Layout(dp=1),
        "deepspeed": DeepSpeed(),
        "backend": "cpu",
    }


def layers(model: Model) -> tuple[Layer, ...]:
    return tuple(placed.layer for placed in model.placed())


def net(segments: tuple[Segment, ...]) -> dict[Term, int]:
    total: dict[Term, int] = {}
    for segment in segments:
        for term, size in segment.net:
            total[term] = total.get(term, 0) + size
    return {term: size for term, size in total.items() if size}


def peak(segments: tuple[Segment, ...]) -> int:
    now = highest = 0
    for segment in segments:
        highest = max(highest, now + sum(size for _, size in segment.peak))
        now += sum(size for _, size in segment.net)
    return highest


def test_a_llama_block_saves_what_was_measured() -> None:
    # Measured on the eager Llama block of transformers with h=512, a=8, kv=2, f=3.5, bf16, sdpa:
    # s*b*h * (8f + 20 + 4g) + 4asb, the output left out. Two inverse deviations a token, in fp32,
    # come with the norms.
    f, g = F / H, G / A
    expected = int(SBH * (8 * f + 20 + 4 * g)) + 4 * A * S * B + 2 * 4 * S * B
    model = llama()
    assert sum(saved_by_component(model.blocks[0].layer, **arguments(model)).values()) == expected


def test_cross_entropy_holds_what_was_measured() -> None:
    # Measured on transformers' ForCausalLMLoss in bf16: 10 bytes a logit at the highest point of
    # forward, 6 after it, 14 at the highest point of backward, the kept logits counted.
    model = llama()
    tape = layer_tape(model.tail[-1].layer, **arguments(model))
    logits = S * B * V
    small = 64 * S * B
    after = net(tape.forward)[Term.LOGITS]
    assert 0 <= peak(tape.forward) - 10 * logits < small
    assert 0 <= after - 6 * logits < small
    assert 0 <= after + peak(tape.backward) - 14 * logits < small
    assert 0 <= tape.held_bytes - 2 * logits <= 8


def test_logits_that_nobody_keeps_are_gone() -> None:
    model = llama()
    tape = layer_tape(model.tail[-1].layer, **arguments(model, keep_logits=False))
    assert tape.held_bytes == 8
    assert net(tape.forward)[Term.LOGITS] < 5 * S * B * V


def test_a_tied_weight_costs_three_buffers_at_the_embedding() -> None:
    # Seen in PyTorch's profiler: the head's gradient is a transposed view, so the embedding's is
    # not added to it in place, and a third buffer takes the sum.
    model = llama(tie_word_embeddings=True)
    weight = V * H * 2
    head, stem = (
        layer_tape(layer, tied_head=True, **arguments(model) | {"backend": "cuda"})
        for layer in (model.tail[-1].layer, model.stem.layer)
    )
    assert net(head.backward)[Term.GRADIENTS] == weight
    assert net(stem.backward)[Term.GRADIENTS] == -weight
    assert 2 * weight - 4 * SBH <= peak(stem.backward) <= 2 * weight
    assert [s.mark.kind for s in head.backward if s.mark] == ["product"]


def test_recomputation_keeps_the_input_alone() -> None:
    model = llama()
    tape = layer_tape(model.blocks[1].layer, **arguments(model, recompute="full"))
    assert tape.input_saved
    assert net(tape.forward) == {Term.ACTIVATIONS: 2 * SBH}


def test_the_output_of_a_block_is_the_next_ones_input() -> None:
    model = llama()
    tape = layer_tape(model.blocks[1].layer, **arguments(model))
    assert tape.output_bytes == 2 * SBH


def test_tensor_parallelism_leaves_norms_and_residuals_whole() -> None:
    model = llama()
    block = model.blocks[0].layer
    whole = saved_by_component(block, **arguments(model))
    cut = saved_by_component(block, **arguments(model, Layout(dp=1, tp=2)))
    assert cut["norms"] == whole["norms"]
    assert cut["mlp"] * 2 == whole["mlp"]
    assert cut["attention.rotary"] * 2 == whole["attention.rotary"]


def test_sequence_parallelism_divides_everything_but_what_is_exchanged() -> None:
    model = llama(num_key_value_heads=A)
    block = model.blocks[0].layer
    whole = saved_by_component(block, **arguments(model))
    cut = saved_by_component(block, **arguments(model, Layout(dp=1, sp=2)))
    assert cut["norms"] * 2 == whole["norms"]
    assert cut["mlp"] * 2 == whole["mlp"]


def test_every_parameter_gets_its_gradient_once() -> None:
    model = llama(attention_bias=True)
    for layer in layers(model):
        tape = layer_tape(layer, **arguments(model))
        marks = [s.mark for s in tape.backward if s.mark]
        told = [mark.parameters[0] for mark in marks if mark.kind == "gradient"]
        assert sorted(told) == list(range(len(layer.parameters)))


def test_modules_are_entered_and_left_in_both_directions() -> None:
    model = llama()
    block = model.blocks[0].layer
    tape = layer_tape(block, modules=True, **arguments(model))
    for segments in (tape.forward, tape.backward):
        marks = [s.mark for s in segments if s.mark and s.mark.kind != "gradient"]
        marks = [mark for mark in marks if mark.parameters]
        entered = [mark.parameters for mark in marks if mark.kind == "enter"]
        left = [mark.parameters for mark in marks if mark.kind == "leave"]
        assert sorted(entered) == sorted(left) == [(i,) for i in range(len(block.parameters))]
        for parameters in entered:
            places = [i for i, mark in enumerate(marks) if mark.parameters == parameters]
            assert [marks[i].kind for i in places] == ["enter", "leave"]


def test_module_marks_move_no_byte() -> None:
    model = llama()
    plain, marked = (
        layer_tape(model.blocks[0].layer, modules=modules, **arguments(model))
        for modules in (False, True)
    )
    for before, after in ((plain.forward, marked.forward), (plain.backward, marked.backward)):
        assert net(before) == net(after)
        assert peak(before) == peak(after)


SIZES = st.fixed_dictionaries(
    {
        "num_key_value_heads": st.sampled_from([1, 2, 4, 8]),
        "intermediate_size": st.integers(1, 40).map(lambda n: 16 * n),
        "tie_word_embeddings": st.booleans(),
        "attention_bias": st.booleans(),
    }
)
HOW = st.fixed_dictionaries(
    {
        "precision": st.sampled_from(["bf16", "fp16", "fp32"]),
        "attention": st.sampled_from(["eager", "sdpa"]),
        "recompute": st.sampled_from(["none", "full"]),
    }
)


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, how=HOW, backend=st.sampled_from(["cpu", "cuda"]), modules=st.booleans())
def test_a_micro_batch_ends_where_it_began(
    *, sizes: dict[str, Any], how: dict[str, Any], backend: str, modules: bool
) -> None:
    model = llama(**sizes)
    told = arguments(model, **how) | {"backend": backend}
    tapes = stage_tapes(layers(model), modules=modules, **told)
    total: dict[Term, int] = {}
    for tape in tapes:
        for term, size in net(tape.forward + tape.backward).items():
            total[term] = total.get(term, 0) + size
    held = sum(tape.held_bytes for tape in tapes)
    assert {term: size for term, size in total.items() if size} == {Term.LOGITS: held}


@settings(deadline=None, max_examples=30)
@given(sizes=SIZES, how=HOW)
def test_recomputation_never_keeps_more(sizes: dict[str, Any], how: dict[str, Any]) -> None:
    model = llama(**sizes)
    block = model.blocks[1].layer
    kept = {
        recompute: sum(
            saved_by_component(block, **arguments(model, **how | {"recompute": recompute})).values()
        )
        for recompute in ("none", "full")
    }
    assert kept["full"] <= kept["none"]


@settings(deadline=None, max_examples=30)
@given(sizes=SIZES, how=HOW)
def test_what_is_saved_is_what_the_forward_pass_leaves(
    sizes: dict[str, Any], how: dict[str, Any]
) -> None:
    model = llama(**sizes)
    told = arguments(model, **how)
    block = model.blocks[1].layer
    tape = layer_tape(block, **told)
    own = sum(saved_by_component(block, **told).values())
    assert net(tape.forward).get(Term.ACTIVATIONS, 0) == own


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_equal_layers_share_a_tape(backend: str) -> None:
    model = llama()
    tapes: list[LayerTape] = [
        layer_tape(placed.layer, **arguments(model) | {"backend": backend})
        for placed in model.blocks
    ]
    assert tapes[0] is tapes[1]
