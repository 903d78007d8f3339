"""Legal layouts, drawn at random: what `planner plan` takes, as documents."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from planner.errors import PlannerError
from planner.model.load import read_configuration
from planner.plan import Plan, make_plan
from planner.spec.load import load

DENSE = (
    "pythia-1.4b",
    "tinyllama-1.1b",
    "qwen2-1.5b",
    "gpt2-xl",
    "bloom-560m",
    "llama-3.2-3b",
    "phi-2",
    "qwen3-8b",
    "llama-3-8b",
    "mistral-7b-v0.1",
    "olmo-2-7b",
    "starcoder2-7b",
    "falcon-7b",
    "gemma-2-2b",
    "glm-4-9b-0414",
    "opt-13b",
    "gpt-neox-20b",
    "qwen3-32b",
    "llama-3-70b",
    "qwen2-72b",
)
ROUTED = (
    "qwen3-30b-a3b",
    "mixtral-8x7b-v0.1",
    "qwen1.5-moe-a2.7b",
    "deepseek-v2-lite",
    "deepseek-v3",
)
WITHOUT_SDPA = ("bloom-560m", "gemma-2-2b")
"""transformers 5.23 refuses to run them with torch's attention."""
DEVICES = ("h100-sxm-80gb", "a100-sxm-80gb", "h200-sxm-141gb")
LENGTHS = (512, 1024, 2048, 4096)
PER_LAYER = ("layer_types", "mlp_layer_types", "attention_types")
WHOLE_DEPTH = 0.05
GATHERING = 3
"""The ZeRO stage that gathers weights."""


def cut(name: str, depth: int) -> dict[str, Any]:
    """The configuration of a catalogue's model with fewer layers, as wide as it is."""
    keys = dict(read_configuration(name, folder=Path()))
    for key in ("num_hidden_layers", "n_layer"):
        if key in keys:
            keys[key] = depth
    return keys | {key: keys[key][:depth] for key in PER_LAYER if isinstance(keys.get(key), list)}


def draws(seed: int, refused: Counter[str]) -> Iterator[tuple[dict[str, Any], Plan]]:
    """Legal documents and their plans, without end; what is refused is counted by its key."""
    random = Random(seed)  # noqa: S311 - for chance, not for secrets
    with TemporaryDirectory() as folder:
        path = Path(folder) / "layout.yaml"
        while True:
            document = draw(random)
            path.write_text(yaml.safe_dump(document))
            try:
                yield document, make_plan(load(path), booked=True)
            except PlannerError as error:
                refused[_key(str(error))] += 1


def draw(random: Random) -> dict[str, Any]:
    """One document; the parts fit each other more often than not."""
    degrees = _degrees(random)
    pipelined, routed = degrees["pp"] > 1, degrees["ep"] > 1
    name = random.choice(ROUTED if routed or _happens(random, 0.1) else DENSE)
    depth = max(random.randint(2, 4), 2 * degrees["pp"] if pipelined else 2)
    whole = _happens(random, WHOLE_DEPTH)
    implementation = (
        "reference"
        if pipelined or routed or degrees["sp"] > 1
        else random.choice(("hf", "hf", "reference"))
    )
    stage = random.choice((0, 1) if pipelined else (0, 1, 2, 2, 3, 3, 3))
    training = _training(random, implementation)
    if name in WITHOUT_SDPA and implementation == "hf":
        training["attention"] = "eager"
    steps = random.choice((1, 1, 2, 4)) * (degrees["pp"] if pipelined else 1)
    dp = degrees.pop("dp")
    training["global_batch_size"] = training["micro_batch_size"] * dp * steps
    num_devices = dp * degrees["tp"] * degrees["pp"] * degrees["sp"]
    keys = {"zero_optimization": _zero(random, stage)} | _others(
        random, stage, training["precision"]
    )
    if pipelined:
        keys["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
        keys["pipeline"]["partition_method"] = random.choice(("parameters", "uniform"))
    if routed:
        keys["expert_engine"] = "moe"
    return {
        "model": name if whole else cut(name, depth),
        "cluster": {
            "nodes": max(1, num_devices // 8),
            "devices_per_node": min(8, num_devices),
            "device": random.choice(DEVICES),
        },
        "training": training,
        "layout": degrees | {"zero_stage": stage},
        "deepspeed": keys,
    }


def _degrees(random: Random) -> dict[str, int]:
    """How many devices each axis has: 8 to 4096 together."""
    kind = random.choice(
        ("data", "data", "data", "pipeline", "pipeline", "tensor", "experts", "sequence")
    )
    degrees = {"tp": 1, "pp": 1, "ep": 1, "sp": 1}
    if kind == "pipeline":
        degrees |= {"pp": random.choice((2, 4, 8)), "tp": random.choice((1, 1, 2, 4))}
    elif kind == "tensor":
        degrees["tp"] = random.choice((2, 4, 8))
    elif kind == "sequence":
        degrees["sp"] = random.choice((2, 4, 8))
    elif kind == "experts":
        degrees |= {"ep": random.choice((2, 4, 8)), "pp": random.choice((1, 1, 2))}
    total = 8 * 2 ** random.randint(0, 9)
    used = degrees["tp"] * degrees["pp"] * degrees["sp"]
    return degrees | {"dp": max(degrees["ep"], total // used)}


def _training(random: Random, implementation: str) -> dict[str, Any]:
    return {
        "sequence_length": random.choice(LENGTHS),
        "micro_batch_size": random.choice((1, 1, 2)),
        "precision": random.choice(("bf16",) * 6 + ("fp16", "fp16", "fp32")),
        "optimizer": random.choice(("adamw",) * 6 + ("sgd", "lion")),
        "optimizer_kernel": random.choice(("fused", "fused", "foreach", "loop")),
        "parameter_groups": random.choice(("one", "weight_decay")),
        "recompute": random.choice(("none", "full", "full")),
        "implementation": implementation,
        "keep_logits": random.choice((True, False)),
        "dropout": False,
        "attention": random.choice(("sdpa", "sdpa", "eager")),
    }


def _zero(random: Random, stage: int) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "reduce_bucket_size": random.choice((500_000_000, 100_000_000, 5_000_000))
    }
    if _happens(random, 0.4):
        keys["overlap_comm"] = random.choice((True, False))
    if stage in {1, 2} and _happens(random, 0.15):
        keys["contiguous_gradients"] = False
    if stage in {1, 2} and _happens(random, 0.2):
        keys["round_robin_gradients"] = True
    if stage and _happens(random, 0.15):
        keys["offload_optimizer"] = {"device": "cpu", "pin_memory": random.choice((True, False))}
    if stage == GATHERING:
        keys |= _gathering(random)
    return keys


def _gathering(random: Random) -> dict[str, Any]:
    chances: dict[str, tuple[Any, ...]] = {
        "stage3_prefetch_bucket_size": (50_000_000, 500_000_000, 0),
        "stage3_param_persistence_threshold": (100_000, 0, 10_000_000),
        "stage3_max_live_parameters": (1_000_000_000, 100_000_000),
        "stage3_max_reuse_distance": (1_000_000_000, 10_000_000, 0),
        "sub_group_size": (1_000_000_000, 50_000_000),
        "stage3_allgather_sequential": (True,),
        "stage3_use_all_reduce_for_fetch_params": (True,),
        "zero_hpz_partition_size": (8,),
        "offload_param": ({"device": "cpu"},),
    }
    rare = {
        "stage3_allgather_sequential",
        "stage3_use_all_reduce_for_fetch_params",
        "zero_hpz_partition_size",
        "offload_param",
    }
    return {
        key: random.choice(values)
        for key, values in chances.items()
        if _happens(random, 0.1 if key in rare else 0.4)
    }


def _others(random: Random, stage: int, precision: str) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    if _happens(random, 0.3):
        keys["gradient_clipping"] = 1.0
    if precision == "bf16" and stage and _happens(random, 0.15):
        keys["data_types"] = {"grad_accum_dtype": random.choice(("fp32", "bf16"))}
    if _happens(random, 0.1):
        keys["communication_data_type"] = random.choice(("fp32", "bf16"))
    return keys


def _key(message: str) -> str:
    """What a refusal is about: the key that its first line names."""
    first = message.splitlines()[0]
    parts = first.split(": ")
    return parts[1] if len(parts) > 1 else first[:60]


def _happens(random: Random, share: float) -> bool:
    return random.random() < share
