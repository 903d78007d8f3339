"""Memory of inference against figures worked out by hand and properties."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import LayoutError, ModelError
from planner.model.counts import weight_bytes
from planner.model.description import Model
from planner.model.inference import cache_elements, inference, local_parameters
from planner.model.inventory import from_document, to_document
from planner.model.load import load_model


def known(name: str) -> Model:
    return load_model(name, folder=Path())


LLAMA_2_7B, QWEN2_72B, DEEPSEEK_V3 = map(known, ("llama-2-7b", "qwen2-72b", "deepseek-v3"))

CACHE_PER_TOKEN = [  # bytes in bf16: layers x what a layer caches x 2
    ("llama-2-7b", 32 * 2 * 32 * 128 * 2),  # MHA: 512 KiB
    ("llama-3-8b", 32 * 2 * 8 * 128 * 2),  # GQA: 128 KiB
    ("qwen2-72b", 80 * 2 * 8 * 128 * 2),
    ("falcon-7b", 32 * 2 * 1 * 64 * 2),  # MQA
    ("gemma-2b", 18 * 2 * 1 * 256 * 2),  # MQA, heads of 256
    ("deepseek-v3", 61 * (512 + 64) * 2),  # MLA: 70 KB
    ("deepseek-v2-lite", 27 * (512 + 64) * 2),
    ("bert-base-uncased", 0),
]


@pytest.mark.parametrize(("name", "size"), CACHE_PER_TOKEN)
def test_cache_of_one_token(name: str, size: int) -> None:
    assert inference(known(name), context_tokens=8).kv_cache_bytes_per_token == size
    assert inference(known(name), context_tokens=8, batch=3).kv_cache_bytes == 3 * 8 * size


@pytest.mark.parametrize(
    ("precision", "said_gb", "exact_gb"),
    [("fp32", 28, 26.95), ("bf16", 14, 13.48), ("int8", 7, 6.74), ("int4", 3.5, 3.37)],
)
def test_a_7b_weighs_28_14_and_7_gb(precision: str, said_gb: float, exact_gb: float) -> None:
    assert weight_bytes(7 * 10**9, precision) == said_gb * 10**9
    assert round(weight_bytes(LLAMA_2_7B.num_parameters, precision) / 1e9, 2) == exact_gb


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 1), (2, 1), (3, 2)])
def test_two_int4_weights_share_a_byte(count: int, size: int) -> None:
    assert weight_bytes(count, "int4") == size


def test_the_rough_rule() -> None:
    run = inference(LLAMA_2_7B, context_tokens=2048, batch=4)
    assert run.rule_bytes == 2 * 6_738_415_616 + 4 * 2048 * 4096 * 2
    assert run.total_bytes == 2 * 6_738_415_616 + 4 * 2048 * 524_288


def test_a_sliding_window_forgets() -> None:
    """Mistral keeps 4096 tokens in every layer, Gemma 2 in every other one."""
    mistral, gemma = known("mistral-7b-v0.1"), known("gemma-2-2b")
    full = inference(mistral, context_tokens=4096).kv_cache_bytes
    assert inference(mistral, context_tokens=32_768).kv_cache_bytes == full
    short, long = (inference(gemma, context_tokens=n).kv_cache_bytes for n in (4096, 8192))
    assert long == short + short // 2


def test_heads_fewer_than_devices_are_held_by_several() -> None:
    """Qwen2-72B has 8 key and value heads: 16 devices hold one each, as 8 devices do."""
    eight, sixteen = (inference(QWEN2_72B, context_tokens=100, tp=tp) for tp in (8, 16))
    assert eight.kv_cache_bytes == sixteen.kv_cache_bytes == 100 * 80 * 2 * 128 * 2
    key_values = 80 * 2 * (8192 * 1024 + 1024)
    norms = 80 * 2 * 8192 + 8192
    assert local_parameters(QWEN2_72B, tp=16) == (
        (QWEN2_72B.num_parameters - key_values - norms) // 16 + key_values // 8 + norms
    )


def test_a_latent_cache_is_whole_on_every_device() -> None:
    one, eight = (inference(DEEPSEEK_V3, context_tokens=100, tp=tp) for tp in (1, 8))
    assert one.kv_cache_bytes == eight.kv_cache_bytes
    assert one.duplicated_bytes == 0
    assert eight.duplicated_bytes == 8 * eight.total_bytes - one.total_bytes
    assert eight.duplicated_bytes >= 7 * one.kv_cache_bytes


def test_a_fused_qkv_is_cut_like_separate_ones() -> None:
    """Qwen-7B's c_attn has as many columns for keys and values as for queries."""
    model = known("qwen-7b")
    norms = 32 * 2 * 4096 + 4096
    assert local_parameters(model, tp=4) == (model.num_parameters - norms) // 4 + norms


NAMES = ["llama-3-8b", "qwen2-72b", "deepseek-v3", "mixtral-8x7b-v0.1", "gpt3-175b", "gpt-oss-20b"]


@given(name=st.sampled_from(NAMES), power=st.integers(0, 3), tokens=st.integers(1, 2000))
def test_devices_hold_at_least_one_copy_and_a_cut_never_costs_a_device(
    name: str, power: int, tokens: int
) -> None:
    model = known(name)
    wide, wider = (
        inference(model, context_tokens=tokens, tp=tp) for tp in (2**power, 2 ** (power + 1))
    )
    assert wider.total_bytes <= wide.total_bytes
    assert wide.duplicated_bytes >= 0
    assert wide.duplicated_bytes <= wider.duplicated_bytes


@given(tokens=st.integers(1, 10_000), batch=st.integers(1, 64))
def test_the_cache_grows_with_tokens_and_batch(tokens: int, batch: int) -> None:
    for model in (LLAMA_2_7B, DEEPSEEK_V3):
        run = inference(model, context_tokens=tokens, batch=batch)
        assert run.kv_cache_bytes == tokens * batch * run.kv_cache_bytes_per_token


def test_quantised_weights_cache_in_bf16() -> None:
    sizes = {
        name: inference(LLAMA_2_7B, context_tokens=10, precision=name).kv_cache_bytes
        for name in ("fp32", "bf16", "int8", "int4")
    }
    assert sizes["fp32"] == 2 * sizes["bf16"]
    assert sizes["bf16"] == sizes["int8"] == sizes["int4"]


def test_degrees_that_do_not_divide_the_heads_are_refused_with_those_that_do() -> None:
    with pytest.raises(LayoutError, match=r"tp: 5 does not divide .* 32 .*\[1, 2, 4, 8, 16, 32\]"):
        inference(LLAMA_2_7B, context_tokens=10, tp=5)


def test_learned_positions_end_the_context() -> None:
    inference(known("gpt2"), context_tokens=1024)
    with pytest.raises(ModelError, match="at most 1024"):
        inference(known("gpt2"), context_tokens=1025)


def test_an_imported_model_has_no_known_cache() -> None:
    imported = from_document(to_document(LLAMA_2_7B), where="x.json")
    assert cache_elements(imported.blocks[0].layer.attention) == 0
    with pytest.raises(ModelError, match="known family"):
        inference(imported, context_tokens=10)
