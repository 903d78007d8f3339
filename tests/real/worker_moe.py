"""Runs one of AutoEP's layers forward and backward on every rank, and reports what it allocates."""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.module_inject import auto_ep_layer
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from transformers import AutoConfig, AutoModelForCausalLM

from planner.validate.collectives import settled_collectives
from planner.validate.ledger import Ledger

WITHOUT_RECORDERS = {
    "preset_model": "deepseek_v3",
    "num_experts_attr": "num_experts",
    "has_shared_experts": False,
    "score_func": "softmax",
    "route_norm": True,
}
"""A preset that leaves transformers' recorders of router logits alone, told to route as Qwen3 does.

qwen3_moe's own calls their registry with a default (auto_ep_presets/base.py:326 of DeepSpeed
0.19.8), which that of transformers 5.23 does not take.
"""


def build(case: dict[str, Any]) -> AutoEPMoELayer:
    """The experts of a Qwen3 MoE model as AutoEP leaves them."""
    settings = AutoConfig.for_model(
        "qwen3_moe",
        hidden_size=case["hidden"],
        moe_intermediate_size=case["ffn"],
        num_experts=case["experts"],
        num_experts_per_tok=case["top_k"],
        norm_topk_prob=True,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
        vocab_size=64,
    )
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-4),
        config={
            "train_micro_batch_size_per_gpu": case["batch"],
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 0},
            "zero_allow_untested_optimizer": True,
            "expert_parallel": {
                "enabled": True,
                "autoep_size": case["ep"],
                **WITHOUT_RECORDERS,
                "use_grouped_mm": False,
            },
        },
    )
    return next(m for m in engine.module.modules() if isinstance(m, AutoEPMoELayer))


def watch_arrivals(arrived: list[tuple[int, list[int]]]) -> None:
    """Note how many rows each exchange brings, and each expert's share after alignment."""
    permute = auto_ep_layer.permute_by_local_expert

    def noted(tokens: torch.Tensor, local_counts: torch.Tensor) -> Any:
        result = permute(tokens, local_counts)
        arrived.append((len(tokens), result[2].tolist()))
        return result

    auto_ep_layer.permute_by_local_expert = noted


def measure(layer: AutoEPMoELayer, case: dict[str, Any], ledger: Ledger) -> dict[str, Any]:
    """Bytes between the passes, and the highest points of both."""
    torch.manual_seed(int(torch.distributed.get_rank()))
    shape = (case["batch"], case["length"], case["hidden"])
    books = ledger.books
    hidden = torch.randn(shape, dtype=torch.bfloat16, requires_grad=True)
    for parameter in layer.parameters():
        parameter.grad = None
    gc.collect()
    start = books.peak_bytes = books.now_bytes
    output = layer(hidden)
    output = output[0] if isinstance(output, tuple) else output
    forward = books.peak_bytes - start
    gc.collect()
    saved = books.now_bytes - start
    gradient = torch.ones_like(output)
    middle = books.peak_bytes = books.now_bytes
    output.backward(gradient)
    return {
        "saved_bytes": saved,
        "forward_peak_bytes": forward,
        "backward_peak_bytes": books.peak_bytes - middle,
        "output_bytes": output.untyped_storage().nbytes(),
    }


def main() -> None:
    """Run the case of the command line and write what was measured."""
    case = json.loads(sys.argv[1])
    gc.freeze()  # readings collect garbage: what the imports made need not be seen
    arrived: list[tuple[int, list[int]]] = []
    watch_arrivals(arrived)
    with settled_collectives():
        deepspeed.init_distributed("gloo")
        layer = build(case)
        with Ledger() as ledger:
            measure(layer, case, ledger)
            arrived.clear()
            result = measure(layer, case, ledger)
    result["received_rows"], result["expert_rows"] = arrived[-1]
    Path(sys.argv[2]).write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
