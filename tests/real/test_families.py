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
from tests.real.activations_measure import Allocation, Trace, large, replay  # noqa: E402

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
OWN_WORDS = {"vocab_size": VOCABULARY, "use_cache": False, "n_positions": 128}
CASES: dict[str, dict[str, Any]] = {
    "gemma": GROUPED | {"head_dim": 32},
    "glm": GROUPED | {"head_dim": 32},
    "glm4": GROUPED | {"head_dim": 32},
    "gpt2": OWN_WORDS | {"n_embd": 256, "n_layer": 2, "n_head": 8, "attn_pdrop": 0.0},
    "gpt_neox": BASE | {"hidden_dropout": 0.1},
    "mistral": GROUPED | {"sliding_window": 4096},
    "olmo2": GROUPED,
    "opt": BASE | {"ffn_dim": 512, "word_embed_proj_dim": 256, "max_position_embeddings": 128},
    "phi": BASE | {"resid_pdrop": 0.1, "embd_pdrop": 0.1},
    "phi3": GROUPED,
    "qwen3": GROUPED | {"head_dim": 32},
    "starcoder2": GROUPED | {"residual_dropout": 0.1, "embedding_dropout": 0.1},
}


def measured(config: dict[str, Any], attention: str) -> list[Allocation]:
    """One forward and backward pass on the CPU in bf16."""
    settings = transformers.AutoConfig.for_model(**config)
    model = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation=attention)
    model = model.to(torch.bfloat16).train()
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    trace = Trace([*model.parameters(), *model.buffers(), tokens])
    with trace:
        output = model(input_ids=tokens, labels=tokens)
        output.loss.backward()
    return large(trace.allocations, SMALL_BYTES)


def told(config: dict[str, Any], attention: str) -> list[Allocation]:
    """The same from the tapes."""
    model = load_model(dict(config), folder=Path())
    training = Training(
        sequence_length=LENGTH,
        micro_batch_size=BATCH,
        attention=attention,  # type: ignore[arg-type]
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
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", list(CASES))
def test_every_allocation_of_the_blocks_is_told(family, attention):
    config = CASES[family] | {"model_type": family}
    real = measured(config, attention)
    ours = told(config, attention)
    assert len(real) == len(ours)
    assert real[STEM:] == ours[STEM:]
