import numpy as np
import pytest

from planner.model.counts import count
from planner.spec.layout import Layout
from planner.timing.products import core, pairs, products
from planner.timing.shapes import Shapes
from planner.timing.step import step_time
from tests.timing.settings import gpt, model, setting

ONE = Layout(dp=1)


def flops_per_token(of, layout=ONE):
    told = setting(of, attention="sdpa")
    layers = [placed.layer for placed in of.placed()]
    return sum(p.flops_per_token for layer in layers for p in products(layer, told, layout))


def matrices(of):
    """Parameters that multiply: what is active, less norms and biases, which are vectors."""
    vectors = sum(
        p.numel
        for placed in of.placed()
        for p in placed.layer.parameters
        if p.component == "norm" or len(p.shape) == 1
    )
    return count(of).active_without_embedding - vectors


@pytest.mark.parametrize("name", ["llama-3-8b", "qwen3-30b-a3b", "deepseek-v3"])
def test_a_forward_pass_takes_two_flops_for_each_active_parameter(name):
    """``2 P`` a token: Kaplan et al. 2020, arXiv:2001.08361, section 2.1."""
    assert flops_per_token(model(name)) == pytest.approx(2 * matrices(model(name)), rel=1e-3)


def test_a_tied_head_multiplies_by_the_embedding():
    of = gpt(2, 256, 4, vocabulary=1024)
    blocks = 2 * 12 * 256**2
    assert flops_per_token(of) == 2 * (blocks + 1024 * 256)


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallelism_divides_the_flops(tp):
    of = gpt(2, 1024, 16, vocabulary=8192)
    assert tp * flops_per_token(of, Layout(dp=1, tp=tp, pp=2)) == flops_per_token(of)


@pytest.mark.parametrize("ep", [2, 8])
def test_expert_parallelism_moves_flops_but_makes_none(ep):
    of = model("qwen3-30b-a3b")
    assert flops_per_token(of, Layout(dp=8, ep=ep)) == pytest.approx(flops_per_token(of))


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "vocabulary"),
    [(24, 2304, 24, 51200), (72, 14336, 64, 250880), (128, 25600, 160, 51200)],
)
@pytest.mark.parametrize("share", [1.0, 0.0])
def test_flops_are_those_of_equation_3(layers, hidden, heads, vocabulary, share):
    """arXiv:2104.04473, appendix: 24 B s l h^2 (1 + s / 6h) a pass, and 6 B s h V for the head.

    Equation 3 is its form for four passes, ``96 B s l h^2 (1 + s / 6h + V / 16 l h)``.
    """
    s, batch = 2048, 6
    shapes = Shapes(dp=1, pp=2, micro_batch_size=2, micro_batches=3, recomputed_share=share)
    found = step_time(setting(gpt(layers, hidden, heads, vocabulary)), shapes)
    passes = 3 + share
    blocks = 24 * passes * batch * s * layers * hidden**2 * (1 + s / (6 * hidden))
    expected = blocks + 6 * batch * s * hidden * vocabulary
    assert 2 * found.hardware_flops[0] == pytest.approx(expected, rel=1e-9)
    if share:
        whole = 1 + s / (6 * hidden) + vocabulary / (16 * layers * hidden)
        assert expected == pytest.approx(96 * batch * s * layers * hidden**2 * whole)


def test_pairs_are_counted_one_by_one():
    facts = model("llama-3-8b").blocks[0].layer.attention
    query, key = np.indices((37, 37))
    assert pairs(facts, 37, fused=True) == np.sum(key <= query)
    assert pairs(facts, 37, fused=False) == 37 * 37


def test_a_window_leaves_out_what_is_far():
    sliding = model("gemma-2-2b").blocks[0].layer.attention
    assert sliding.window is not None
    length = 3 * sliding.window
    seen = sum(min(query + 1, sliding.window) for query in range(length))
    assert pairs(sliding, length, fused=True) == seen


def test_ulysses_gives_each_rank_its_heads_and_the_whole_sequence():
    layer = model("llama-3-8b").blocks[0].layer
    whole = core(layer, setting(model("llama-3-8b")), ONE)
    cut = core(layer, setting(model("llama-3-8b")), Layout(dp=1, sp=4))
    assert 4 * cut.flops_per_sequence == whole.flops_per_sequence
