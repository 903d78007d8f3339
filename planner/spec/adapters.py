"""``adapters:`` of a file: low-rank adapters on a model that is frozen, and perhaps quantised."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from planner.spec.fields import Count, Reader, Schema

Quantized = Literal["none", "nf4", "nf4_double", "gptq"]

ALL_LINEAR = "all-linear"


def _listed(value: Any) -> Any:
    """One name is written without brackets."""
    return (value,) if isinstance(value, str) else value


_NAME = {"type": "string", "minLength": 1}
Names = Annotated[
    tuple[str, ...],
    Reader(_listed),
    Schema({"anyOf": [_NAME, {"type": "array", "items": _NAME}]}),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """What peft's ``LoraConfig`` says, under its names, and how the frozen weights lie."""

    r: Count = 8
    """Rank of the adapters."""
    target_modules: Names = ("q_proj", "v_proj")
    """Last parts of module names, as in the model's own code; all-linear: all but the head."""
    modules_to_save: Names = ()
    """Trained whole, beside a frozen copy."""
    lora_dropout: bool = False
    """Whether its probability is above 0, so that each adapter keeps a mask."""
    quantized: Quantized = "none"
    """The blocks' frozen matrices: nf4 (bitsandbytes; nf4_double: with doubly quantised constants)
    or gptq."""
    autocast: bool = True
    """Adapters are fp32, as peft makes them, and cast where they are used; false: fp32 all the
    way. Engines that cast the model as a whole cast them with it."""
