"""Plans of whole files under ZeRO-3 against real training, to the byte; see `model_plans`."""

import pytest

from tests.real.model_plans import LLAMA, assert_equal, measure, spec_of

pytestmark = pytest.mark.real

TIED = LLAMA | {"tie_word_embeddings": True}
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 32}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 256,
    "n_layer": 3,
    "n_head": 8,
    "vocab_size": 2048,
    "n_positions": 128,
    "attn_pdrop": 0.0,
}
OPT = {
    "model_type": "opt",
    "hidden_size": 256,
    "ffn_dim": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "vocab_size": 2048,
    "max_position_embeddings": 128,
    "word_embed_proj_dim": 256,
    "pad_token_id": None,  # transformers cannot fill the padding's row of a partitioned weight
}
MIXTRAL = LLAMA | {
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
}
QWEN3_MOE = QWEN3 | {
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 3,
    "mlp_only_layers": [0],
}
THREE = {"global_batch_size": 12}
FULL = {"recompute": "full"}
TIGHT = {
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 200_000,
    "stage3_max_reuse_distance": 300_000,
}
CASES = {
    "llama": (LLAMA, {}, {}),
    "llama, three micro-steps": (LLAMA, THREE, {}),
    "llama, recompute": (LLAMA, FULL, {}),
    "llama, recompute, three, tight": (LLAMA, FULL | THREE, TIGHT),
    "llama, nothing persistent": (LLAMA, {}, {"stage3_param_persistence_threshold": 0}),
    "llama, few persistent": (LLAMA, {}, {"stage3_model_persistence_threshold": 1000}),
    "llama, no reuse": (LLAMA, THREE, {"stage3_max_reuse_distance": 0}),
    "llama, few live": (LLAMA, {}, {"stage3_max_live_parameters": 500_000}),
    "llama, sub-groups": (LLAMA, {}, {"sub_group_size": 300_000}),
    "llama, no overlap": (LLAMA, {}, {"overlap_comm": False}),
    "llama, not contiguous": (LLAMA, {}, {"contiguous_gradients": False}),
    "llama, second partitions": (LLAMA, {}, {"zero_hpz_partition_size": 2}),
    "llama, fp32": (LLAMA, {"precision": "fp32"}, {}),
    "llama, fp16": (LLAMA, {"precision": "fp16"}, {}),
    "llama, eager attention": (LLAMA, {"attention": "eager"}, {}),
    "tied": (TIED, {}, {}),
    "tied, three micro-steps, tight": (TIED, THREE, TIGHT),
    "qwen3, tight": (QWEN3, {}, TIGHT),
    "gpt2": (GPT2, {}, {}),
    "gpt2, three, tight": (GPT2, THREE, TIGHT),
    "opt, tight": (OPT, {}, TIGHT),
    "mixtral": (MIXTRAL, {}, {}),
    "mixtral, recompute, tight": (MIXTRAL, FULL, TIGHT),
    "mixtral, three, tight": (MIXTRAL, THREE, TIGHT),
    "qwen3_moe, tight": (QWEN3_MOE, {}, TIGHT),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    specs = {
        name: spec_of(model=model, training=training, layout={"zero_stage": 3}, zero=zero)
        for name, (model, training, zero) in CASES.items()
    }
    return measure(specs, tmp_path_factory.mktemp("plans"))


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_what_deepspeed_allocates(measured, name):
    assert_equal(*measured[name])
