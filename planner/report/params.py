"""``planner params``: parameters by component, their weight, and the memory of inference."""

import re
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.model.catalogue import entries
from planner.model.counts import BITS, Counts, count, weight_bytes
from planner.model.description import Model
from planner.model.inference import CACHE_PRECISION, Inference, inference
from planner.units import show_gib

DEFAULT_CONTEXT_TOKENS = 4096
GIGA, MEGA = 10**9, 10**6
WIDE = 110
NAME_TOLERANCE = (0.7, 1.4)
"""A size in a name is believed if it is about the total: Qwen-7B has 7.7 billion parameters."""

_SIZE_IN_NAME = re.compile(r"(?<![\dx.])(\d+(?:\.\d+)?)([bm])(?![a-z])")

ACTIVE_CONVENTION = (
    "active: what one token passes through; embedding, head, router and shared experts counted "
    "whole, routed experts k of E. Publishers count differently (some leave embeddings out)."
)


def default_context(model: Model) -> int:
    """4096 tokens, or as many as the model has positions for."""
    return min(DEFAULT_CONTEXT_TOKENS, model.max_positions)


def params_document(
    model: Model, *, context_tokens: int | None = None, batch: int = 1, tp: int = 1
) -> dict[str, Any]:
    """Build ``planner.params/1``; counts are parameters, sizes bytes.

    ``inference`` is that of bf16, ``inference_by_precision`` has all; both are of one of ``tp``
    devices. They are null for an imported model, whose attention is not known.
    """
    counts = count(model)
    runs = _runs(model, context_tokens, batch, tp)
    by_precision = {name: _inference(run) for name, run in runs.items()}
    return {
        "schema": "planner.params/1",
        "model": {
            "name": model.name,
            "family": model.family,
            "implementation": model.implementation,
            "num_layers": model.num_layers,
            "hidden_size": model.hidden_size,
            "vocab_size": model.vocab_size,
            "max_positions": model.max_positions,
            "tied": model.tied,
        },
        "parameters": {
            "total": counts.total,
            "active": counts.active,
            "active_without_embedding": counts.active_without_embedding,
            "by_component": dict(counts.by_component),
        },
        "bytes": {name: weight_bytes(counts.total, name) for name in BITS},
        "inference": by_precision.get("bf16"),
        "inference_by_precision": by_precision or None,
    }


def render(
    model: Model, *, context_tokens: int | None = None, batch: int = 1, tp: int = 1, width: int
) -> RenderableType:
    """Draw heading, components, weights and inference; side by side where there is room."""
    counts = count(model)
    runs = _runs(model, context_tokens, batch, tp)
    components, weights = _component_table(counts), _weight_table(model, counts)
    below = _inference_table(runs) if runs else Text(_UNKNOWN)
    remarks = _remarks(model, counts, runs)
    heading = Text(_heading(model, counts))
    if width >= WIDE:
        grid = Table.grid(padding=(0, 6, 0, 0))
        grid.add_row(components, weights)
        return Group(heading, Text(), grid, Text(), below, *remarks)
    return Group(heading, Text(), components, Text(), weights, Text(), below, *remarks)


_UNKNOWN = "inference: not known of an imported inventory, which does not tell its attention."


def _runs(model: Model, context_tokens: int | None, batch: int, tp: int) -> dict[str, Inference]:
    if model.inventory_only:
        return {}
    context = default_context(model) if context_tokens is None else context_tokens
    return {
        name: inference(model, context_tokens=context, batch=batch, tp=tp, precision=name)
        for name in BITS
    }


def _inference(run: Inference) -> dict[str, Any]:
    return {
        **asdict(run),
        "total_bytes": run.total_bytes,
        "rule_bytes": run.rule_bytes,
        "kv_cache_precision": CACHE_PRECISION[run.precision],
    }


def _heading(model: Model, counts: Counts) -> str:
    tied = "tied head" if model.tied else "untied head"
    active = f", {counts.active:,} active per token" if counts.active != counts.total else ""
    return (
        f"{model.name} ({model.implementation}): {counts.total:,} parameters{active}\n"
        f"{model.num_layers} layers, hidden {model.hidden_size}, "
        f"{_attention(model)}vocabulary {model.vocab_size}, {tied}"
    )


def _attention(model: Model) -> str:
    attention = model.blocks[0].layer.attention if model.blocks else None
    if attention is None:
        return ""
    if attention.latent is not None:
        return f"{attention.num_heads} heads (MLA, latent {attention.latent.kv_rank}), "
    groups, heads = attention.num_kv_heads, attention.num_heads
    kind = "MHA" if groups == heads else "MQA" if groups == 1 else f"GQA, {groups} key/value"
    return f"{heads} heads ({kind}), "


def _component_table(counts: Counts) -> Table:
    table = _table(("component", "parameters", "share"))
    for name, number in counts.by_component.items():
        table.add_row(_words(name), f"{number:,}", f"{number / counts.total:.2%}")
    table.add_row("total", f"{counts.total:,}", "", style="bold")
    if counts.active != counts.total:
        table.add_row(
            "active per token", f"{counts.active:,}", f"{counts.active / counts.total:.2%}"
        )
    return table


def _weight_table(model: Model, counts: Counts) -> Table:
    """Exact weights in GB and GiB, and the round figure that people say."""
    said = said_size(model.name, counts.total)
    unit, letter = (GIGA, "B") if said >= GIGA else (MEGA, "M")
    table = _table(("weights", "GB", "GiB", f"said: {said / unit:g} {letter} x bytes"))
    for name, bits in BITS.items():
        size = weight_bytes(counts.total, name)
        label = "bf16, fp16" if name == "bf16" else name
        table.add_row(
            label, f"{size / GIGA:.2f}", show_gib(size), f"{said * bits / 8 / GIGA:.4g} GB"
        )
    return table


def said_size(name: str, total: int) -> float:
    """The round size that people say: the one in the name (``7b``), else the total, rounded."""
    found = _SIZE_IN_NAME.search(name.lower())
    if found is not None:
        size = float(found[1]) * (GIGA if found[2] == "b" else MEGA)
        if NAME_TOLERANCE[0] * total <= size <= NAME_TOLERANCE[1] * total:
            return size
    unit = GIGA if total >= GIGA else MEGA
    return max(1, round(total / unit)) * unit


def _inference_table(runs: dict[str, Inference]) -> Table:
    some = runs["bf16"]
    each = "one device" if some.tp == 1 else f"each of {some.tp} devices"
    table = _table(("inference, GiB", "weights", "KV cache", each, "rough rule"))
    for name, run in runs.items():
        sizes = (run.weights_bytes, run.kv_cache_bytes, run.total_bytes, run.rule_bytes)
        label = f"{'bf16, fp16' if name == 'bf16' else name}, cache {CACHE_PRECISION[name]}"
        table.add_row(label, *(show_gib(size) for size in sizes))
    return table


def _remarks(model: Model, counts: Counts, runs: dict[str, Inference]) -> list[Text]:
    remarks = _count_remarks(model, counts) + (_run_remarks(model, runs["bf16"]) if runs else [])
    return [Text(remark, style="dim") for remark in remarks]


def _count_remarks(model: Model, counts: Counts) -> list[str]:
    remarks = [ACTIVE_CONVENTION] if counts.active != counts.total else []
    entry = next((known for known in entries() if known.name == model.name), None)
    if entry is None or entry.published in (None, counts.total):
        return remarks
    return [*remarks, f"published total: {entry.published:,} ({entry.note})"]


def _run_remarks(model: Model, run: Inference) -> list[str]:
    what = (
        f"{run.batch} x {run.context_tokens} tokens; {run.kv_cache_bytes_per_token:,} B of cache "
        "a token in bf16. Activations, logits and the runtime's own memory are not counted."
    )
    rule = (
        "rough rule: parameters x bytes + batch x sequence x hidden x bytes, cut by nothing; its "
        f"second term is {show_gib(run.rule_cache_bytes, 3)} GiB where the cache is "
        f"{show_gib(run.kv_cache_bytes, 3)}: it knows neither layers nor key/value heads."
    )
    remarks = [what, rule]
    if run.tp > 1:
        remarks.append(
            f"tp {run.tp}: {show_gib(run.duplicated_bytes, 3)} GiB in all are held more than once "
            f"(norms, routers, latent projections and their cache, key/value heads fewer than tp)."
        )
    if run.context_tokens > model.max_positions:
        remarks.append(
            f"{run.context_tokens} tokens are above the {model.max_positions} that it declares."
        )
    return remarks if run.kv_cache_bytes else [*remarks, "an encoder keeps no cache."]


def _words(component: str) -> str:
    return component.replace("_", " ").replace(".", " ")


def _table(headings: tuple[str, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right")
    return table
