"""Which parameters an entry trains, and in how many bits the others lie."""

import re
from collections.abc import Mapping
from typing import Any

from planner.accuracy.case import UnsupportedError
from planner.accuracy.entries import Entry, whole
from planner.accuracy.translate.common import Reader
from planner.model.adapters import Tuning
from planner.model.description import Component, Storage

_MODULES: Mapping[str, tuple[Component, ...]] = {
    "q": ("attention.q", "attention.qkv"),
    "q_proj": ("attention.q",),
    "query": ("attention.q", "attention.qkv"),
    "k_proj": ("attention.k",),
    "key": ("attention.k", "attention.qkv"),
    "v": ("attention.v", "attention.qkv"),
    "v_proj": ("attention.v",),
    "value": ("attention.v", "attention.qkv"),
    "c_attn": ("attention.qkv", "attention.q", "attention.k", "attention.v"),
    "qkv_proj": ("attention.qkv",),
    "query_key_value": ("attention.qkv",),
    "o_proj": ("attention.o",),
    "projection": ("attention.o",),
    "dense": ("attention.o",),
    "c_proj": ("attention.o", "mlp"),
    "w1": ("mlp",),
    "w2": ("mlp",),
    "mlp": ("mlp",),
    "gate_proj": ("mlp",),
    "up_proj": ("mlp",),
    "down_proj": ("mlp",),
    "head": ("head",),
}
"""What sources call modules; a family that has another's matrices fused has the fused adapter."""


def tuning_of(
    entry: Entry, reader: Reader, *, autocast: bool, cast_by_engine: bool = False
) -> Tuning | None:
    """Adapters of a fine-tuning run; None: everything is trained.

    ``autocast``: fp32 adapters are cast where they are used; ``cast_by_engine``: before that.

    Raises:
        UnsupportedError: a method that is none of LoRA's.

    """
    method = str(entry.training.get("method", "full")).lower()
    base = _base(str(entry.training.get("quantization") or ""), method, reader)
    if method.startswith("full"):
        if base != "model":
            raise UnsupportedError(f"full training of {entry.training['quantization']} weights")
        return None
    if "lora" not in method:
        raise UnsupportedError(f"method {method} is not modelled")
    told: Any = entry.training.get("lora")
    facts = told if isinstance(told, dict) else {}
    ends: frozenset[Component] = frozenset({"embedding", "head"})
    return Tuning(
        rank=_rank(facts, method, reader),
        targets=_targets(facts, reader),
        base=base,
        adapters=_adapters(entry, autocast=autocast, cast_by_engine=cast_by_engine),
        trained=ends if facts.get("embeddings_trained") is True else frozenset(),
    )


def _base(told: str, method: str, reader: Reader) -> Storage:
    """Of the frozen matrices. litgpt names the doubly quantised kind, others make no other."""
    told = told.lower()
    if "gptq" in told or "int4" in str(reader.entry.training.get("param_dtype", "")):
        return "gptq"
    if "nf4" in told or "fp4" in told or (method.startswith("q") and "lora" in method):
        single = told.startswith("bnb.") and not told.endswith("dq")
        return "nf4" if single else "nf4_double"
    if told:
        raise UnsupportedError(f"quantization {told} is not modelled")
    return "model"


def _rank(facts: Mapping[str, Any], method: str, reader: Reader) -> int:
    rank = whole(facts, "r")
    if rank is None:
        found = re.search(r"r(\d+)", method)
        if found is None:
            reader.assume("the adapters' rank is not given: 8")
            return 8
        return int(found[1])
    return rank


def _targets(facts: Mapping[str, Any], reader: Reader) -> frozenset[Component]:
    """Components that have adapters; queries and values where nothing is told."""
    told = facts.get("target_modules", facts.get("targets"))
    if told is None:
        told = [
            name
            for name in ("query", "key", "value", "projection", "mlp", "head")
            if facts.get(name) is True
        ]
    if isinstance(told, str):
        told = ["q", "v"] if "q,v" in told.replace(" ", "") else ["q", "k_proj", "v"]
    names = [str(name).rpartition(".")[2] for name in told] or ["q", "v"]
    unknown = [name for name in names if name not in _MODULES]
    if unknown:
        reader.assume(f"adapters of {', '.join(unknown)} are left out")
    return frozenset(c for name in names for c in _MODULES.get(name, ()))


def _adapters(entry: Entry, *, autocast: bool, cast_by_engine: bool) -> Storage:
    """Peft makes them fp32 (``autocast_adapter_dtype``, from 0.12 on), litgpt does not."""
    if "litgpt" in entry.framework.lower() or cast_by_engine:
        return "model"
    return "fp32_autocast" if autocast else "fp32"
