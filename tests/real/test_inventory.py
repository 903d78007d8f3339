"""The inventory equals transformers' own model: name by name, shape by shape, in the same order."""

import json
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pytest

from planner.model import catalogue
from planner.model.load import load_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.real

ANYWHERE = Path()
NOT_IN_TRANSFORMERS = {"qwen"}
CLASSES = {"LLaMAForCausalLM": "LlamaForCausalLM"}

KNOWN = [entry for entry in catalogue.entries() if entry.family not in NOT_IN_TRANSFORMERS]


def rows_of_transformers(config: dict[str, Any]) -> list[str]:
    """``name [shape]`` of every unique parameter of the model, built without storage."""
    keys = {key: value for key, value in config.items() if key != "quantization_config"}
    built = transformers.AutoConfig.for_model(keys.pop("model_type"), **keys)
    name = config["architectures"][0]
    with torch.device("meta"):
        model = getattr(transformers, CLASSES.get(name, name))(built)
    return [f"{name} {list(weight.shape)}" for name, weight in model.named_parameters()]


def rows_of_ours(entry: str | dict[str, Any]) -> list[str]:
    model = load_model(entry, folder=ANYWHERE)
    return [f"{parameter.name} {list(parameter.shape)}" for parameter in model.parameters()]


def difference(theirs: list[str], ours: list[str]) -> str:
    return "\n".join(unified_diff(theirs, ours, "transformers", "planner", lineterm="", n=1))


@pytest.mark.parametrize("entry", KNOWN, ids=lambda entry: entry.name)
def test_a_catalogue_model_has_the_parameters_that_transformers_registers(
    entry: catalogue.Entry,
) -> None:
    config = json.loads(catalogue.path_of(entry.name).read_text())
    theirs, ours = rows_of_transformers(config), rows_of_ours(entry.name)
    assert theirs == ours, difference(theirs, ours)


GQA = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 128,
}  # fmt: skip
MHA = {**GQA, "num_key_value_heads": 8}
MLA = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 8,
    "vocab_size": 128, "n_routed_experts": 16, "moe_intermediate_size": 24, "kv_lora_rank": 16,
    "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10,
    "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4, "first_k_dense_replace": 1,
}  # fmt: skip
EXPERTS = {**GQA, "num_experts": 8, "moe_intermediate_size": 24}
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 8, "vocab_size": 128, "n_positions": 32}
BLOOM = {"hidden_size": 64, "n_layer": 3, "n_head": 8, "vocab_size": 128}
OPT = {
    "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 8,
    "vocab_size": 128, "max_position_embeddings": 32, "word_embed_proj_dim": 64,
}  # fmt: skip
FALCON = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8, "vocab_size": 128,
}  # fmt: skip

VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "LlamaForCausalLM", {**GQA, "attention_bias": True, "mlp_bias": True}),
    ("llama", "LlamaForCausalLM", {**GQA, "head_dim": 24, "tie_word_embeddings": True}),
    ("mistral", "MistralForCausalLM", {**GQA, "head_dim": 16, "tie_word_embeddings": True}),
    ("mistral", "MistralForCausalLM", {**GQA, "num_key_value_heads": 8, "sliding_window": None}),
    ("mixtral", "MixtralForCausalLM", {**GQA, "num_local_experts": 4, "head_dim": 12}),
    ("qwen2", "Qwen2ForCausalLM", {**GQA, "tie_word_embeddings": True}),
    ("qwen2_moe", "Qwen2MoeForCausalLM", {**EXPERTS, "decoder_sparse_step": 2}),
    ("qwen2_moe", "Qwen2MoeForCausalLM", {**EXPERTS, "mlp_only_layers": [0], "qkv_bias": False}),
    ("qwen3", "Qwen3ForCausalLM", {**GQA, "attention_bias": True, "head_dim": 24}),
    ("qwen3", "Qwen3ForCausalLM", {**GQA, "tie_word_embeddings": True}),
    ("qwen3_moe", "Qwen3MoeForCausalLM", {**EXPERTS, "mlp_only_layers": [1, 2]}),
    ("qwen3_moe", "Qwen3MoeForCausalLM", {**EXPERTS, "attention_bias": True, "head_dim": 24}),
    ("deepseek_v2", "DeepseekV2ForCausalLM", {**MLA, "attention_bias": True, "mlp_bias": True}),
    ("deepseek_v2", "DeepseekV2ForCausalLM", {**MLA, "n_shared_experts": 3, "q_lora_rank": None}),
    ("deepseek_v3", "DeepseekV3ForCausalLM", {**MLA, "attention_bias": True}),
    ("deepseek_v3", "DeepseekV3ForCausalLM",
     {**MLA, "q_lora_rank": None, "n_shared_experts": 2, "first_k_dense_replace": 0}),
    ("deepseek_v3", "DeepseekV3ForCausalLM", {**MLA, "tie_word_embeddings": True}),
    ("gemma", "GemmaForCausalLM", {**GQA, "attention_bias": True, "tie_word_embeddings": False}),
    ("gemma2", "Gemma2ForCausalLM", {**GQA, "attention_bias": True, "head_dim": 24}),
    ("gemma3_text", "Gemma3ForCausalLM", {**GQA, "head_dim": 24, "tie_word_embeddings": False}),
    ("phi", "PhiForCausalLM", {**GQA, "qk_layernorm": True}),
    ("phi3", "Phi3ForCausalLM", {**GQA, "pad_token_id": 0, "tie_word_embeddings": True}),
    ("starcoder2", "Starcoder2ForCausalLM",
     {**GQA, "use_bias": False, "tie_word_embeddings": False}),
    ("olmo2", "Olmo2ForCausalLM", {**GQA, "attention_bias": True, "tie_word_embeddings": True}),
    ("glm", "GlmForCausalLM", {**GQA, "pad_token_id": 0, "attention_bias": False}),
    ("glm4", "Glm4ForCausalLM", {**GQA, "pad_token_id": 0, "tie_word_embeddings": True}),
    ("glm4_moe", "Glm4MoeForCausalLM",
     {**GQA, "n_routed_experts": 16, "moe_intermediate_size": 24, "use_qk_norm": True,
      "first_k_dense_replace": 2}),
    ("gpt_oss", "GptOssForCausalLM", {**GQA, "num_local_experts": 8, "attention_bias": False}),
    ("gpt2", "GPT2LMHeadModel", {**GPT2, "n_inner": 80, "tie_word_embeddings": False}),
    ("gpt_neox", "GPTNeoXForCausalLM", {**MHA, "attention_bias": False}),
    ("gpt_neox", "GPTNeoXForCausalLM",
     {**MHA, "use_parallel_residual": False, "tie_word_embeddings": True}),
    ("bloom", "BloomForCausalLM", {**BLOOM, "tie_word_embeddings": False}),
    ("falcon", "FalconForCausalLM", {**FALCON, "multi_query": False, "bias": True, "alibi": True}),
    ("falcon", "FalconForCausalLM", {**FALCON, "parallel_attn": False}),
    ("falcon", "FalconForCausalLM",
     {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 80}),
    ("falcon", "FalconForCausalLM",
     {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 4, "tie_word_embeddings": False,
      "num_ln_in_parallel_attn": 1}),
    ("opt", "OPTForCausalLM", {**OPT, "enable_bias": False, "tie_word_embeddings": False}),
    ("opt", "OPTForCausalLM", {**OPT, "do_layer_norm_before": False}),
    ("opt", "OPTForCausalLM", {**OPT, "layer_norm_elementwise_affine": False}),
    ("bert", "BertForMaskedLM",
     {**MHA, "max_position_embeddings": 32, "type_vocab_size": 3}),
    ("gemma3", "Gemma3ForConditionalGeneration",
     {"text_config": {**GQA, "head_dim": 24},
      "vision_config": {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
                        "num_attention_heads": 4, "patch_size": 14, "image_size": 56,
                        "vision_use_head": False}}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "trained", "keys"), VARIANTS)
def test_every_key_that_changes_a_family_changes_it_as_transformers_does(
    family: str, trained: str, keys: dict[str, Any]
) -> None:
    config = {"model_type": family, "architectures": [trained], **keys}
    theirs, ours = rows_of_transformers(config), rows_of_ours(config)
    assert theirs == ours, difference(theirs, ours)


def test_opt_350m_projects_into_and_out_of_a_narrower_embedding() -> None:
    keys = {**OPT, "word_embed_proj_dim": 32, "do_layer_norm_before": False}
    config = {"model_type": "opt", "architectures": ["OPTForCausalLM"], **keys}
    theirs, ours = rows_of_transformers(config), rows_of_ours(config)
    assert sorted(theirs) == sorted(ours)


def test_every_family_that_transformers_has_is_among_the_variants() -> None:
    from planner.model.families import FAMILIES

    covered = {family for family, *_ in VARIANTS} | {"kimi_k2"} | NOT_IN_TRANSFORMERS
    assert covered == set(FAMILIES)
