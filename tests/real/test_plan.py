"""Plans of whole files below ZeRO-3 against real training, to the byte; see `model_plans`."""

import pytest

from tests.real.model_plans import LLAMA, assert_equal, measure, spec_of

pytestmark = pytest.mark.real

CASES = {
    "zero-0": ({}, {}, {"zero_stage": 0}, {}),
    "zero-1": ({}, {}, {"zero_stage": 1}, {}),
    "zero-2": ({}, {}, {"zero_stage": 2}, {}),
    "zero-1, three micro-steps": ({}, {"global_batch_size": 12}, {"zero_stage": 1}, {}),
    "zero-2, three micro-steps": ({}, {"global_batch_size": 12}, {"zero_stage": 2}, {}),
    "zero-2, recompute": ({}, {"recompute": "full"}, {"zero_stage": 2}, {}),
    "zero-2, tied": ({"tie_word_embeddings": True}, {}, {"zero_stage": 2}, {}),
    "zero-2, eager attention": ({}, {"attention": "eager"}, {"zero_stage": 2}, {}),
    "zero-2, overlap": ({}, {}, {"zero_stage": 2}, {"overlap_comm": True}),
    "zero-1, foreach": ({}, {"optimizer_kernel": "foreach"}, {"zero_stage": 1}, {}),
    "zero-1, logits dropped": ({}, {"keep_logits": False}, {"zero_stage": 1}, {}),
    "zero-2, qwen3": ({"model_type": "qwen3", "head_dim": 32}, {}, {"zero_stage": 2}, {}),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    specs = {
        name: spec_of(model=LLAMA | model, training=training, layout=layout, zero=zero)
        for name, (model, training, layout, zero) in CASES.items()
    }
    return measure(specs, tmp_path_factory.mktemp("plans"))


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_what_deepspeed_allocates(measured, name):
    assert_equal(*measured[name])
