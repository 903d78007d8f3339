"""A model that is not trained as a whole: low-rank adapters, frozen and quantised weights.

Sources: peft 0.13, tuners/lora/layer.py (``Linear``) and tuners/lora/bnb.py (``Linear4bit``);
bitsandbytes 0.44, functional.py (``quantize_4bit``); AutoGPTQ 0.7, qlinear_tritonv2.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.model.description import Component, Layer, Model, Parameter, Placed, Storage
from planner.units import ceil_div

MATRIX = 2
"""Dims of what an adapter stands beside."""

DOWN, UP = "lora_A.default.weight", "lora_B.default.weight"
"""Inside of the module that has an adapter: (r, in) and (out, r)."""

PACKED: Mapping[Storage, bool] = {"nf4": True, "nf4_double": True, "gptq": False}
"""Four-bit kinds, and whether a product first makes the whole matrix of the model's precision:
bitsandbytes 0.44, autograd/_functions.py (``MatMul4Bit``); GPTQ's kernel unpacks as it goes."""

_BLOCK = 64
"""Elements of nf4 that share a constant, and of GPTQ's 128 a scale and a zero."""
_CONSTANTS_BLOCK = 256
_GROUP = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What is trained, and how the rest lies in memory."""

    rank: int
    targets: frozenset[Component] = frozenset()
    """Whose matrices have an adapter."""
    modules: frozenset[str] = frozenset()
    """Modules, by the last part of their names, whose matrices have one, too."""
    base: Storage = "model"
    """Of the blocks' frozen matrices."""
    adapters: Storage = "model"
    trained: frozenset[Component] = frozenset()
    """Trained whole, beside the adapters."""
    saved: frozenset[str] = frozenset()
    """Modules that are trained whole, too, by the last part of their names."""
    dropout: bool = False
    """What goes into an adapter is dropped out, which keeps a mask."""


def stored_bytes(numel: int, stored: Storage, element_bytes: int) -> int:
    """Bytes of a tensor whose precision has ``element_bytes`` an element."""
    packed = ceil_div(numel, 2)
    match stored:
        case "model":
            return numel * element_bytes
        case "fp32" | "fp32_autocast":
            return 4 * numel
        case _:
            return packed + constants_bytes(numel, stored)


def constants_bytes(numel: int, stored: Storage) -> int:
    """What stands beside four-bit elements: fp32 maxima (themselves in 8 bits), or fp16 scales."""
    blocks = ceil_div(numel, _BLOCK)
    match stored:
        case "nf4":
            return 4 * blocks
        case "nf4_double":
            return blocks + 4 * ceil_div(blocks, _CONSTANTS_BLOCK)
        case "gptq":
            return ceil_div(numel, _GROUP) * 5 // 2
        case _:
            return 0


def tuned(model: Model, tuning: Tuning) -> Model:
    """The model with its adapters; layers that are the same object stay so."""
    made: dict[int, Layer] = {}

    def change(placed: Placed) -> Placed:
        key = id(placed.layer)
        if key not in made:
            made[key] = _layer(placed.layer, tuning, turned=model.family == "gpt2")
        return replace(placed, layer=made[key])

    return replace(
        model,
        name=f"{model.name} (LoRA {tuning.rank})",
        stem=change(model.stem),
        blocks=tuple(change(placed) for placed in model.blocks),
        tail=tuple(change(placed) for placed in model.tail),
    )


def _layer(layer: Layer, tuning: Tuning, *, turned: bool) -> Layer:
    parameters: list[Parameter] = []
    for parameter in layer.parameters:
        base = tuning.base if layer.kind == "block" and _is_matrix(parameter) else "model"
        saved = parameter.component in tuning.trained or module_of(parameter) in tuning.saved
        parameters.append(replace(parameter, trained=saved, stored=base))
        if saved:
            parameters.append(_original(parameter))
        elif _has_adapter(parameter, tuning):
            parameters += _adapter(parameter, tuning, turned=turned)
    return replace(layer, parameters=tuple(parameters), adapter_dropout=tuning.dropout)


def module_of(parameter: Parameter) -> str:
    """Last part of the name of the module that registers it; of a stem's or a head's: its own."""
    return parameter.name.rpartition(".")[0].rpartition(".")[2]


def can_adapt(parameter: Parameter) -> bool:
    """Whether peft can put an adapter beside it: the weight of a linear layer."""
    return len(parameter.shape) == MATRIX and parameter.component not in {"embedding", "norm"}


def _original(parameter: Parameter) -> Parameter:
    """What is trained whole is a copy: peft keeps the module it was copied from.

    Source: peft 0.13, utils/other.py (``ModulesToSaveWrapper``).
    """
    module, _, leaf = parameter.name.rpartition(".")
    name = f"{module}.original_module.{leaf}" if module else f"original_module.{leaf}"
    return replace(parameter, name=name, component="adapter", trained=False)


def _is_matrix(parameter: Parameter) -> bool:
    return len(parameter.shape) >= MATRIX and parameter.component != "norm"


def _has_adapter(parameter: Parameter, tuning: Tuning) -> bool:
    if parameter.component in tuning.targets:
        return len(parameter.shape) == MATRIX
    return module_of(parameter) in tuning.modules and can_adapt(parameter)


def _adapter(parameter: Parameter, tuning: Tuning, *, turned: bool) -> list[Parameter]:
    """Beside a matrix (out, in); ``turned``: (in, out), as GPT-2 has them."""
    module = parameter.name.rpartition(".")[0]
    outputs, inputs = reversed(parameter.shape) if turned else parameter.shape
    return [
        Parameter(
            name=f"{module}.{name}",
            shape=shape,
            component="adapter",
            stored=tuning.adapters,
        )
        for name, shape in ((DOWN, (tuning.rank, inputs)), (UP, (outputs, tuning.rank)))
    ]
