"""Imported inventories, and the cache of inference, against transformers itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from planner.errors import ModelError
from planner.model.inference import inference
from planner.model.load import load_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.real

T5 = {
    "model_type": "t5", "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4,
    "vocab_size": 100, "architectures": ["T5ForConditionalGeneration"],
}  # fmt: skip
JAMBA = {
    "model_type": "jamba", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "num_experts": 4,
    "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
    "use_mamba_kernels": False, "architectures": ["JambaForCausalLM"],
}  # fmt: skip


@pytest.mark.parametrize("config", [T5, JAMBA], ids=["t5", "jamba"])
def test_an_unknown_family_becomes_an_inventory_that_model_accepts(
    config: dict[str, Any], tmp_path: Path
) -> None:
    from planner.validate.model_import import import_model, write_inventory

    with pytest.raises(ModelError, match="planner model import DIR"):
        load_model(config, folder=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_inventory(import_model(tmp_path), tmp_path / "stored.json")
    model = load_model("stored.json", folder=tmp_path)
    keys = {key: value for key, value in config.items() if key != "architectures"}
    built = getattr(transformers, config["architectures"][0])(
        transformers.AutoConfig.for_model(keys.pop("model_type"), **keys)
    )
    theirs = [(name, tuple(weight.shape)) for name, weight in built.named_parameters()]
    assert [(p.name, p.shape) for p in model.parameters()] == theirs
    assert len({id(placed.layer) for placed in model.blocks}) <= model.num_layers
    assert model.inventory_only


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "no_such_family"}, "not a family of transformers"),
        ({"hidden_size": 3}, "not a family of transformers"),
        ({**T5, "d_model": "wide"}, "cannot build it"),
    ],
)
def test_what_transformers_refuses_is_told(
    config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    from planner.validate.model_import import import_model

    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said):
        import_model(tmp_path)


GQA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 128, "head_dim": 16,
}  # fmt: skip
MLA = {
    "model_type": "deepseek_v3", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 128,
    "n_routed_experts": 16, "moe_intermediate_size": 24, "kv_lora_rank": 16, "q_lora_rank": 24,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10, "n_group": 4,
    "topk_group": 2, "num_experts_per_tok": 4, "first_k_dense_replace": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(GQA, id="grouped"),
        pytest.param({**GQA, "num_key_value_heads": 1}, id="multi-query"),
        pytest.param(
            {**GQA, "model_type": "gemma2", "num_hidden_layers": 4, "sliding_window": 8},
            id="every-other-layer-slides",
        ),
        pytest.param({**GQA, "model_type": "mistral", "sliding_window": 8}, id="all-slide"),
        pytest.param(MLA, id="latent"),
    ],
)
def test_the_cache_that_transformers_fills(config: dict[str, Any]) -> None:
    batch, tokens = 2, 24
    keys = dict(config)
    settings = transformers.AutoConfig.for_model(keys.pop("model_type"), **keys)
    model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    cache = transformers.StaticCache(config=settings, max_cache_len=tokens)
    with torch.no_grad():
        model(torch.zeros(batch, tokens, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    described = load_model(config, folder=Path())
    assert inference(described, context_tokens=tokens, batch=batch).kv_cache_bytes == held
