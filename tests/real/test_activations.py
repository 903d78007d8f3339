"""The tapes of whole models equal real ones, allocation by allocation and byte by byte."""

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.real.activations_measure import (
    SEQUENCES,
    TOKENS,
    VOCABULARY,
    Allocation,
    Setting,
    build,
    described,
    difference,
    large,
    predicted,
    traced,
)

pytestmark = pytest.mark.real

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "head_dim": 32,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}
LATENT = {
    "head_dim": 16,
    "num_key_value_heads": 8,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 48,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": SHAPE | {"model_type": "llama"},
    "llama, tied": SHAPE | {"model_type": "llama", "tie_word_embeddings": True},
    "llama, biases": SHAPE | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, heads": SHAPE | {"model_type": "llama", "num_key_value_heads": 8, "head_dim": 48},
    "mistral": SHAPE | {"model_type": "mistral"},
    "qwen2": SHAPE | {"model_type": "qwen2"},
    "qwen3": SHAPE | {"model_type": "qwen3"},
    "mixtral": SHAPE | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": SHAPE | EXPERTS | {"model_type": "qwen3_moe", "num_experts": 8},
    "deepseek_v3": SHAPE | EXPERTS | LATENT | {"model_type": "deepseek_v3"},
}
COMMON = [Setting(), Setting(recompute="full"), Setting(attention="eager", precision="fp32")]
MORE = [
    Setting(precision="fp32"),
    Setting(precision="fp16", attention="eager"),
    Setting(attention="eager", recompute="full"),
]
CASES = [(name, setting) for name in MODELS for setting in COMMON]
CASES += [("llama", setting) for setting in MORE]
STEM = 10
"""Large allocations before the blocks: beside them transformers makes index tensors and scalars
of some hundred bytes, which the tape leaves out."""


@pytest.mark.parametrize(
    ("name", "setting"), CASES, ids=[f"{name}-{'-'.join(setting)}" for name, setting in CASES]
)
def test_every_allocation_of_a_step_is_predicted(name: str, setting: Setting) -> None:
    real = build(MODELS[name], setting)
    ours = large(predicted(described(MODELS[name], real), setting))
    assert difference(large(traced(real)), ours, stem=STEM) == []


SCALARS = 64
"""Bytes: numbers that kernels wrap as tensors, which only the allocator sees."""
RANDOM_STATE = 5056
"""Bytes of a CPU generator's state; each checkpoint keeps one, and one more while it runs again."""
CHECKPOINTS = 2
ABOVE = 5200


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("name", ["llama", "llama, tied", "qwen3"])
def test_without_a_dispatch_mode_gradients_add_up_in_place(name: str, recompute: str) -> None:
    # Under a mode PyTorch never adds in place; here the allocator's own record is compared.
    setting = Setting(attention="eager", recompute=recompute)
    real = build(MODELS[name], setting)
    ours = predicted(described(MODELS[name], real), setting, in_place=True)
    slack = SCALARS + (RANDOM_STATE * (CHECKPOINTS + 1) if recompute == "full" else 0)
    measured = large(_recorded(real), ABOVE)
    assert difference(measured, large(ours, ABOVE), stem=STEM, slack=slack) == []


def _recorded(real: Any) -> list[Allocation]:
    """A step as the profiler's memory events tell it."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    ids = torch.randint(0, VOCABULARY, (SEQUENCES, TOKENS))
    real(input_ids=ids, labels=ids).loss.backward()
    real.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        output = real(input_ids=ids, labels=ids)
        output.loss.backward()
    events: list[tuple[int, int, int]] = []
    for root in record.profiler.kineto_results.experimental_event_tree():
        _collect(root, events)
    return _lived(sorted(events))


def _collect(event: Any, events: list[tuple[int, int, int]]) -> None:
    fields = event.extra_fields
    if type(fields).__name__ == "_ExtraFields_Allocation":
        events.append((event.start_time_ns, fields.alloc_size, fields.ptr))
    for child in event.children:
        _collect(child, events)


def _lived(events: list[tuple[int, int, int]]) -> list[Allocation]:
    """Allocations with the total after each; what was there before the record is left out."""
    live = 0
    born: set[int] = set()
    result = []
    for _, size, address in events:
        if size > 0:
            born.add(address)
            live += size
            result.append(Allocation(size, live))
        elif address in born:
            born.discard(address)
            live += size
    return result
