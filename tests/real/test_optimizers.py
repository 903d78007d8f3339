"""Optimizers other than AdamW, in whole steps of DeepSpeed: what each keeps and allocates."""

import pytest

pytest.importorskip("deepspeed")

from tests.real.whole_plans import LLAMA, Case, differences

pytestmark = pytest.mark.real

SCALARS_BYTES = 160
"""A step of an fp32 model has some more of them: a norm for each parameter."""
SMALL = LLAMA | {"num_hidden_layers": 1}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 512,
    "n_positions": 128,
}
"""Its embeddings, wte and wpe, have names that Muon takes for a matrix's."""
NARROW = LLAMA | {"num_hidden_layers": 2, "vocab_size": 64}
"""So few words that the exchange of matrices is the highest point of Muon's step."""


def gathered(bucket_numel):
    """ZeRO-3 as Muon needs it."""
    return {"zero_optimization": {"reduce_scatter": False, "reduce_bucket_size": bucket_numel}}


def case(optimizer, *, zero=1, ranks=2, model=SMALL, deepspeed=None, **training):
    return Case(
        ranks,
        {
            "model": model,
            "layout": {"zero_stage": zero},
            "training": {"optimizer": optimizer, "global_batch_size": 4 * ranks, **training},
            "deepspeed": {"zero_optimization": {"reduce_bucket_size": 50_000}} | (deepspeed or {}),
        },
    )


SGD = {"optimizer_kernel": "loop"}
FUSED = {"optimizer_kernel": "fused"}
CASES = {
    "momentum": case("sgd", **SGD),
    "momentum, foreach, without ZeRO": case("sgd", zero=0, optimizer_kernel="foreach"),
    "momentum, fp32 without ZeRO": case("sgd", zero=0, precision="fp32", **SGD),
    "momentum, fp32 accumulation": case(
        "sgd", deepspeed={"data_types": {"grad_accum_dtype": "fp32"}}, **SGD
    ),
    "momentum, ZeRO-3": case("sgd", zero=3, **SGD),
    "no momentum": case("sgd", zero=2, momentum=0.0, **SGD),
    "muon": case("muon", **FUSED),
    "muon, ZeRO-2, decay, fp32": case(
        "muon", zero=2, parameter_groups="weight_decay", precision="fp32", **FUSED
    ),
    "muon, ZeRO-3": case("muon", zero=3, model=NARROW, deepspeed=gathered(1_000_000), **FUSED),
    "muon, ZeRO-3, four ranks": case(
        "muon",
        zero=3,
        ranks=4,
        model=NARROW,
        precision="fp32",
        deepspeed=gathered(60_000),
        **FUSED,
    ),
    "muon of words, ZeRO-2": case(
        "muon", zero=2, model=GPT2, implementation="hf", dropout=False, **FUSED
    ),
    "lion": case("lion"),
    "lion, ZeRO-3": case("lion", zero=3),
    "lion, fp32 without ZeRO": case("lion", zero=0, precision="fp32"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return differences(CASES, tmp_path_factory.mktemp("plans"), scalars_bytes=SCALARS_BYTES)


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_what_deepspeed_allocates(found, name):
    assert not found[name], "\n".join(found[name])
