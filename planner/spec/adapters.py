"""``adapters:`` of a file: low-rank adapters on a model that is frozen, and perhaps quantised."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from planner.spec.fields import STRICT, Count

Quantized = Literal["none", "nf4", "nf4_double", "gptq"]


def _listed(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_listed), Field(min_length=1)
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """What peft's ``LoraConfig`` says, under its names, and how the frozen weights lie."""

    __pydantic_config__ = STRICT

    r: Count = 8
    """Rank of the adapters."""
    target_modules: Literal["all-linear"] | Names = ("q_proj", "v_proj")
    """Last parts of module names, as in the model's own code; all-linear: all but the head."""
    modules_to_save: Names | tuple[()] = ()
    """Trained whole, beside a frozen copy."""
    lora_dropout: bool = False
    """Whether its probability is above 0: what is dropped is a copy with a mask."""
    quantized: Quantized = "none"
    """The blocks' frozen matrices: nf4 (bitsandbytes; nf4_double: with doubly quantised constants)
    or gptq."""
    autocast: bool = True
    """Adapters are fp32, as peft makes them, and cast where they are used; false: fp32 all the
    way. Engines that cast the model as a whole cast them with it."""
