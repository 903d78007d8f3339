"""Small models on small clusters, whose spaces can be gone through one by one."""

import tempfile
from pathlib import Path
from typing import Any

import yaml

from planner.spec.load import Spec, load

DENSE = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
SPARSE = {
    "model_type": "qwen3_moe",
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def searched(
    model: Any = DENSE,
    *,
    devices: int = 8,
    memory: str = "80GiB",
    layout: Any = "auto",
    training: dict[str, Any] | None = None,
    cluster: dict[str, Any] | None = None,
    search: dict[str, Any] | None = None,
    deepspeed: dict[str, Any] | None = None,
) -> Spec:
    """What `load` makes of a file whose layout is left open."""
    nodes = max(1, devices // 8)
    content = {
        "model": model,
        "cluster": {
            "nodes": nodes,
            "devices_per_node": devices // nodes,
            "device": {"like": "h100-sxm-80gb", "memory": memory},
            **(cluster or {}),
        },
        "training": {"sequence_length": 1024, "global_batch_size": 16, **(training or {})},
        "layout": layout,
        "search": search or {},
        "deepspeed": deepspeed or {},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "spec.yaml")
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return load(path)
