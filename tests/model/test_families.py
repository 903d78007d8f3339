"""Families against formulas written down independently, for configurations nobody published."""

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from planner.model.counts import count
from planner.model.load import load_model


def total(config: dict[str, Any]) -> int:
    return load_model(config, folder=Path()).num_parameters


heads = st.integers(1, 6).flatmap(
    lambda groups: st.tuples(st.integers(1, 4).map(lambda times: groups * times), st.just(groups))
)
SIZES = {
    "hidden": st.integers(1, 64),
    "ffn": st.integers(1, 200),
    "layers": st.integers(1, 12),
    "vocab": st.integers(1, 500),
    "head_size": st.integers(1, 32).map(lambda half: 2 * half),
}


@given(heads=heads, tied=st.booleans(), bias=st.booleans(), **SIZES)
def test_llama(*, heads, tied, bias, hidden, ffn, layers, vocab, head_size) -> None:
    """``L (2 H A D + 2 H G D + 3 H F + 2 H) + (1 or 2) V H + H``, biases on q, k, v, o."""
    queries, groups = heads
    block = 2 * hidden * queries * head_size + 2 * hidden * groups * head_size
    block += 3 * hidden * ffn + 2 * hidden
    block += bias * (queries * head_size + 2 * groups * head_size + hidden)
    expected = layers * block + (1 if tied else 2) * vocab * hidden + hidden
    config = {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": queries, "vocab_size": vocab,
        "num_key_value_heads": groups, "head_dim": head_size, "attention_bias": bias,
        "tie_word_embeddings": tied,
    }  # fmt: skip
    assert total(config) == expected


@given(
    width=st.integers(1, 8), heads=st.integers(1, 8), layers=st.integers(1, 12),
    vocab=st.integers(1, 500), positions=st.integers(1, 300),
)  # fmt: skip
def test_gpt2(width, heads, layers, vocab, positions) -> None:
    """``L (12 H^2 + 13 H) + V H + S H + 2 H``: the usual count of GPT-2 and GPT-3."""
    hidden = width * heads
    config = {
        "model_type": "gpt2", "n_embd": hidden, "n_head": heads, "n_layer": layers,
        "vocab_size": vocab, "n_positions": positions,
    }  # fmt: skip
    expected = layers * (12 * hidden**2 + 13 * hidden) + (vocab + positions + 2) * hidden
    assert total(config) == expected


@given(
    heads=st.integers(1, 8), groups=st.integers(1, 4), per_group=st.integers(2, 6),
    dense=st.integers(0, 5), sparse=st.integers(0, 5), shared=st.integers(1, 3),
    hidden=st.integers(1, 64), ffn=st.integers(1, 99), expert=st.integers(1, 50),
    q_rank=st.none() | st.integers(1, 40), kv_rank=st.integers(1, 40), data=st.data(),
)  # fmt: skip
def test_deepseek_v3(
    *, heads, groups, per_group, dense, sparse, shared, hidden, ffn, expert, q_rank, kv_rank, data
) -> None:
    """MLA's projections (arXiv:2405.04434, section 2.1) and the experts, total and active."""
    if dense + sparse == 0:
        sparse = 1
    experts, rope, nope, value, vocab = groups * per_group, 4, 6, 5, 77
    chosen = data.draw(st.integers(1, per_group))
    queries = heads * (rope + nope)
    q = hidden * queries if q_rank is None else hidden * q_rank + q_rank + q_rank * queries
    kv = hidden * (kv_rank + rope) + kv_rank + kv_rank * heads * (nope + value)
    attention = q + kv + heads * value * hidden + 2 * hidden
    one = 3 * hidden * expert
    outside = 2 * vocab * hidden + hidden + (dense + sparse) * attention
    outside += dense * 3 * hidden * ffn + sparse * (hidden * experts + shared * one)
    model = load_model(
        {
            "model_type": "deepseek_v3", "hidden_size": hidden, "intermediate_size": ffn,
            "moe_intermediate_size": expert, "num_hidden_layers": dense + sparse,
            "first_k_dense_replace": dense, "num_attention_heads": heads, "vocab_size": vocab,
            "n_routed_experts": experts, "n_shared_experts": shared, "n_group": groups,
            "topk_group": 1, "num_experts_per_tok": chosen, "q_lora_rank": q_rank,
            "kv_lora_rank": kv_rank, "qk_rope_head_dim": rope, "qk_nope_head_dim": nope,
            "v_head_dim": value,
        },
        folder=Path(),
    )  # fmt: skip
    counts = count(model)
    assert counts.total == outside + sparse * experts * one
    assert counts.active == outside + sparse * chosen * one


@given(
    heads=heads, experts=st.integers(1, 12), every=st.integers(1, 4),
    dense=st.sets(st.integers(0, 5)), data=st.data(),
)  # fmt: skip
def test_qwen3_moe_has_experts_where_it_says(heads, experts, every, dense, data) -> None:
    queries, groups = heads
    chosen = data.draw(st.integers(1, experts))
    model = load_model(
        {
            "model_type": "qwen3_moe", "hidden_size": 8 * queries, "intermediate_size": 10,
            "moe_intermediate_size": 6, "num_hidden_layers": 6, "num_attention_heads": queries,
            "num_key_value_heads": groups, "vocab_size": 50, "num_experts": experts,
            "num_experts_per_tok": chosen, "decoder_sparse_step": every,
            "mlp_only_layers": sorted(dense),
        },
        folder=Path(),
    )  # fmt: skip
    with_experts = {
        int(name.split(".")[2])
        for name in (p.name for p in model.parameters())
        if "experts" in name
    }
    assert with_experts == {i for i in range(6) if i not in dense and (i + 1) % every == 0}


def test_class_defaults_fill_what_a_file_drops() -> None:
    """The class default is a query rank of 1536; only an explicit null switches it off."""
    config = {
        "model_type": "deepseek_v2", "hidden_size": 32, "intermediate_size": 48,
        "moe_intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
    }  # fmt: skip
    names = {p.name: p.shape for p in load_model(config, folder=Path()).parameters()}
    assert names["model.layers.0.self_attn.q_a_proj.weight"] == (1536, 32)
    explicit = load_model({**config, "q_lora_rank": None}, folder=Path())
    assert "model.layers.0.self_attn.q_proj.weight" in {p.name for p in explicit.parameters()}


def test_opt_registers_its_last_norm_before_its_blocks_and_runs_it_after() -> None:
    model = load_model("opt-125m", folder=Path())
    assert [placed.layer.kind for placed in model.registered()][:2] == ["stem", "norm"]
    assert [placed.layer.kind for placed in model.placed()][-2:] == ["norm", "head"]
