"""Build a model of any family once, without storage, and keep its parameters as an inventory.

For configurations that no file under ``planner/model/families`` describes. transformers builds
the model on torch's meta device from the configuration alone: no weights are read, and code that
comes with a model (``auto_map``, ``trust_remote_code``) is never run. What tensor parallelism cuts
is what transformers' own plan cuts; without one, every rank holds the whole.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from planner.model.description import Component, Layer, Model, Parameter, Placed
from planner.model.document import read_document
from planner.model.faults import fault
from planner.model.inventory import to_document

MAPPINGS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_MAPPING",
)
"""Where a class is looked up, in this order, if the configuration names none of transformers."""

COLUMN = ("colwise", "packed_colwise", "embedding_rowwise", "vocab")
ROW = ("rowwise",)

WORDS: tuple[tuple[Component, tuple[str, ...]], ...] = (
    ("vision", ("vision", "visual", "image", "patch_embed", "audio")),
    ("routed_experts", (".experts.",)),
    ("shared_experts", ("shared_expert",)),
    ("router", ("router", "gate.weight", "gate.bias", "gate.wg")),
    ("norm", ("norm", "ln_", "layernorm")),
    ("head", ("lm_head", "cls.", "score.", "output_projection")),
    ("embedding", ("embed", "wte.", "wpe.", "shared.weight")),
    ("attention.q_down", ("q_a_proj",)),
    ("attention.q_up", ("q_b_proj",)),
    ("attention.kv_down", ("kv_a_proj",)),
    ("attention.kv_up", ("kv_b_proj",)),
    ("attention.qkv", ("qkv", "query_key_value", "c_attn", "wqkv")),
    ("attention.q", ("q_proj", "query", "wq.", ".q.")),
    ("attention.k", ("k_proj", "key", "wk.", ".k.")),
    ("attention.v", ("v_proj", "value", "wv.", ".v.")),
    ("attention.o", ("o_proj", "out_proj", "attention.dense", "attn.dense", "wo.", ".o.")),
    (
        "mlp",
        ("mlp", "feed_forward", "ffn", "fc1", "fc2", "wi_", "wi.", "intermediate", "output.dense"),
    ),
)
"""Component by the first of these that stands in a parameter's name; a guess for the table only:
no memory term reads it."""


def import_model(folder: Path) -> dict[str, Any]:
    """Return the inventory document of the model in ``folder`` (or of a ``config.json``).

    Raises `ConfigError` for a file that is no configuration, a family that this transformers does
    not have, and a configuration that it refuses.
    """
    path = folder / "config.json" if folder.is_dir() else folder
    config, _ = read_document(path)
    name = path.parent.resolve().name if path.name == "config.json" else path.stem
    return to_document(_describe(_build(config, str(path)), name))


def write_inventory(document: dict[str, Any], path: Path) -> None:
    """Write an inventory where ``model:`` of a file, or `planner params`, can name it."""
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _build(config: dict[str, Any], where: str) -> Any:
    """The module on the meta device; whatever transformers says against it is told."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise fault(where, f"{error.name} is not installed; install planner[validate]") from None
    keys = {k: v for k, v in config.items() if k not in {"auto_map", "quantization_config"}}
    family = keys.pop("model_type", None)
    if family not in transformers.CONFIG_MAPPING:
        raise fault(
            where,
            f"{family!r} is not a family of transformers {transformers.__version__}; code that "
            "comes with a model is never run, so write its parameters down by hand",
            key="model_type",
        )
    try:
        settings = transformers.AutoConfig.for_model(family, **keys)
        with torch.device("meta"):
            return _instance(transformers, settings, config.get("architectures"))
    except Exception as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise fault(where, f"transformers cannot build it: {said[0]}; mend the keys") from error


def _instance(transformers: Any, settings: Any, architectures: Any) -> Any:
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    trained = getattr(transformers, named, None) if isinstance(named, str) else None
    if isinstance(trained, type) and issubclass(trained, transformers.PreTrainedModel):
        return trained(settings)
    order = (*MAPPINGS[1:], MAPPINGS[0]) if settings.is_encoder_decoder else MAPPINGS
    for name in order:
        found = getattr(transformers, name).get(type(settings), None)
        if found is not None:
            return (found[0] if isinstance(found, tuple) else found)(settings)
    raise ValueError(f"no class for {type(settings).__name__}")


def _describe(module: Any, name: str) -> Model:
    settings = module.config.get_text_config()
    parameters = list(_parameters(module))
    stem, blocks, tail = _grouped(parameters, _block_prefixes(module))
    return Model(
        name=name,
        family=str(module.config.model_type),
        implementation=type(module).__name__,
        hidden_size=int(getattr(settings, "hidden_size", 0) or 0),
        vocab_size=int(getattr(settings, "vocab_size", 0) or 0),
        max_positions=int(getattr(settings, "max_position_embeddings", 0) or 0),
        tied=_tied(module),
        stem=stem,
        blocks=blocks,
        tail=tail,
        inventory_only=True,
        experts_per_token=_experts_per_token(settings),
    )


def _experts_per_token(settings: Any) -> int | None:
    names = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_top_k")
    found = (getattr(settings, name, None) for name in names)
    return next((value for value in found if isinstance(value, int)), None)


def _parameters(module: Any) -> Iterator[Parameter]:
    """Every unique parameter, in the order in which the module registers them."""
    plan = dict(getattr(module, "tp_plan", None) or {})
    for name, weight in module.named_parameters():
        component = _component(name)
        yield Parameter(
            name=name,
            shape=tuple(weight.shape),
            component=component,
            tp_dim=_tp_dim(name, weight.ndim, plan),
            routed=component == "routed_experts" and weight.ndim >= 3,  # noqa: PLR2004  [E, ., .]
        )


def _component(name: str) -> Component:
    lowered = name.lower()
    return next((part for part, words in WORDS if any(w in lowered for w in words)), "other")


def _tp_dim(name: str, ndim: int, plan: dict[str, str]) -> int | None:
    """The dim that transformers' own plan cuts; None where it has none for the parameter."""
    module, _, kind = name.rpartition(".")
    steps = [".".join("*" if step.isdigit() else step for step in full.split("."))
             for full in (module, name)]  # fmt: skip
    style = next((plan[step] for step in steps if step in plan), "")
    first = 0 if ndim < 3 else 1  # noqa: PLR2004  dim 0 of fused experts counts them
    if style.startswith(COLUMN):
        return first
    return ndim - 1 if style.startswith(ROW) and kind != "bias" else None


def _block_prefixes(module: Any) -> tuple[str, ...]:
    """Prefixes of the entries of the outermost ``ModuleList`` of every branch."""
    import torch

    lists: list[str] = []
    for name, child in module.named_modules():
        within = any(name.startswith(f"{known}.") for known in lists)
        if isinstance(child, torch.nn.ModuleList) and not within:
            lists.append(name)
    return tuple(
        f"{name}.{index}." for name in lists for index in range(len(module.get_submodule(name)))
    )


def _grouped(
    parameters: Iterable[Parameter], prefixes: tuple[str, ...]
) -> tuple[Placed, tuple[Placed, ...], tuple[Placed, ...]]:
    """Cut the list where the prefix changes; what is equal within two blocks is stored once."""
    prefix_of = _Prefixes(prefixes)
    runs = [(prefix, tuple(run)) for prefix, run in groupby(parameters, key=prefix_of)]
    first = next((i for i, (prefix, _) in enumerate(runs) if prefix), len(runs))
    last = max((i for i, (prefix, _) in enumerate(runs) if prefix), default=first - 1)
    stem = _placed("", tuple(p for _, run in runs[:first] for p in run), "stem")
    known: dict[tuple[Parameter, ...], Layer] = {}
    blocks = []
    for prefix, run in runs[first : last + 1]:
        placed = _placed(prefix, run, "block")
        layer = known.setdefault(placed.layer.parameters, placed.layer)
        blocks.append(Placed(prefix=prefix, layer=layer))
    rest = tuple(p for _, run in runs[last + 1 :] for p in run)
    return stem, tuple(blocks), (_placed("", rest, "head"),)


class _Prefixes:
    """Finds the block of a parameter by its name."""

    def __init__(self, prefixes: tuple[str, ...]) -> None:
        self.prefixes = frozenset(prefixes)

    def __call__(self, parameter: Parameter) -> str:
        steps = parameter.name.split(".")
        starts = (".".join(steps[:count]) + "." for count in range(1, len(steps)))
        return next((start for start in starts if start in self.prefixes), "")


def _placed(prefix: str, parameters: tuple[Parameter, ...], kind: Any) -> Placed:
    local = tuple(replace(p, name=p.name.removeprefix(prefix)) for p in parameters)
    return Placed(prefix=prefix, layer=Layer(kind=kind, parameters=local))


def _tied(module: Any) -> bool:
    try:
        read, write = module.get_input_embeddings(), module.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return False
    return write is not None and getattr(write, "weight", None) is getattr(read, "weight", 0)
