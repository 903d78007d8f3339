"""Tapes of whole models against runs of transformers, allocation by allocation."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from planner.activations.layers import placed, run_once  # noqa: E402
from planner.model.load import load_model  # noqa: E402
from planner.spec.deepspeed import DeepSpeed  # noqa: E402
from planner.spec.layout import Layout  # noqa: E402
from planner.spec.training import Training  # noqa: E402
from tests.real.activations_measure import (  # noqa: E402
    Allocation,
    Trace,
    difference,
    large,
    replay,
)

VOCABULARY, BATCH, LENGTH = 1000, 2, 64
SMALL_BYTES = 1100
"""Below it: position ids, labels, scalars."""
STEM = 9
"""Allocations up to the blocks: with dropout the masks come before it, in the tape after it."""

BASE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": VOCABULARY,
    "use_cache": False,
}
GROUPED = BASE | {"num_key_value_heads": 2, "pad_token_id": 0}
SPREAD = GROUPED | {"head_dim": 32}
WINDOWED = SPREAD | {"sliding_window": 32}
OWN_WORDS = {"vocab_size": VOCABULARY, "use_cache": False, "n_positions": 128}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}
GROUPS = {"n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1}
LATENT = BASE | EXPERTS | GROUPS
LATENT |= {"num_key_value_heads": 8, "head_dim": 16, "q_lora_rank": 96, "kv_lora_rank": 64}
LATENT |= {"qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 48}
LIMITED = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
FALCON = BASE | {"model_type": "falcon"}
CASES: dict[str, dict[str, Any]] = {
    "bert": BASE | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0},
    "bloom": OWN_WORDS | {"hidden_size": 256, "n_layer": 2, "n_head": 8, "hidden_dropout": 0.1},
    "deepseek_v2": LATENT | {"topk_method": "greedy"},
    "deepseek_v2, groups": LATENT | LIMITED | {"model_type": "deepseek_v2"},
    "falcon, grouped": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon, one key head": FALCON | {"multi_query": True, "parallel_attn": True},
    "gemma": SPREAD,
    "gemma2": WINDOWED,
    "gemma3_text": WINDOWED | {"layer_types": ["sliding_attention", "full_attention"]},
    "glm": SPREAD,
    "glm4": SPREAD,
    "glm4_moe": SPREAD | EXPERTS | GROUPS | {"n_group": 1, "topk_group": 1},
    "gpt2": OWN_WORDS | {"n_embd": 256, "n_layer": 2, "n_head": 8, "attn_pdrop": 0.0},
    "gpt_neox": BASE | {"hidden_dropout": 0.1},
    "gpt_oss": WINDOWED | {"num_local_experts": 8, "num_experts_per_tok": 2},
    "mistral": GROUPED | {"sliding_window": 4096},
    "olmo2": GROUPED,
    "opt": BASE | {"ffn_dim": 512, "word_embed_proj_dim": 256, "max_position_embeddings": 128},
    "phi": BASE | {"resid_pdrop": 0.1, "embd_pdrop": 0.1},
    "phi3": GROUPED,
    "qwen2_moe": GROUPED | EXPERTS | {"num_experts": 8, "shared_expert_intermediate_size": 128},
    "qwen3": SPREAD,
    "starcoder2": GROUPED | {"residual_dropout": 0.1, "embedding_dropout": 0.1},
}
EAGER_ONLY = {"bloom", "gemma2", "gpt_oss"}
"""Their classes have no other attention (``_supports_sdpa``)."""
SCALARS_BYTES = {"falcon": 64, "gemma2": 320, "gemma3_text": 320, "gpt_oss": 522}
"""Of index tensors, and of gpt-oss's weights of the chosen experts, which are alive beside the
compared allocations and below `SMALL_BYTES`."""
MEASURED = [
    (name, attention, recompute)
    for name in CASES
    for attention in ("sdpa", "eager")
    for recompute in ("none", "full")
    if attention == "eager" or name not in EAGER_ONLY
]


def measured(config: dict[str, Any], attention: str, recompute: str) -> list[Allocation]:
    """One forward and backward pass on the CPU in bf16."""
    settings = transformers.AutoConfig.for_model(**config)
    masked = config["model_type"] == "bert"
    kind = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    model = kind.from_config(settings, attn_implementation=attention)
    model = model.to(torch.bfloat16).train()
    if recompute == "full":
        model.activation_checkpointing_enable()
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    trace = Trace([*model.parameters(), *model.buffers(), tokens])
    with trace:
        output = model(input_ids=tokens, labels=tokens)
        output.loss.backward()
    return large(trace.allocations, SMALL_BYTES)


def told(config: dict[str, Any], attention: str, recompute: str) -> list[Allocation]:
    """The same from the tapes."""
    model = load_model(dict(config), folder=Path())
    training = Training(
        sequence_length=LENGTH,
        micro_batch_size=BATCH,
        attention=attention,  # type: ignore[arg-type]
        recompute=recompute,  # type: ignore[arg-type]
    )
    layers = tuple(one.layer for one in model.placed())
    passes = [
        run_once(
            layer,
            model=model,
            training=training,
            layout=Layout(dp=1),
            deepspeed=DeepSpeed(),
            tied_head=tied,
            boundary=boundary,
            backend="cpu",
        )
        for layer, tied, boundary in placed(layers, tied=model.tied)
    ]
    return large(replay(passes), SMALL_BYTES)


@pytest.mark.real
@pytest.mark.parametrize(("name", "attention", "recompute"), MEASURED)
def test_every_allocation_of_the_blocks_is_told(name, attention, recompute):
    config = {"model_type": name} | CASES[name]
    real = measured(config, attention, recompute)
    ours = told(config, attention, recompute)
    slack = SCALARS_BYTES.get(config["model_type"], 0)
    assert difference(real[STEM:], ours[STEM:], slack=slack) == []
