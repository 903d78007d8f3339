"""An entry as something that can be planned, or the reason why it cannot."""

from dataclasses import dataclass
from typing import Literal

from planner.errors import PlannerError
from planner.model.description import Model
from planner.spec.load import Spec

Where = int | Literal["last", "worst"]
"""Which pipeline stage was read."""


class UnsupportedError(PlannerError):
    """An entry that cannot be turned into a plan; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One entry, translated."""

    spec: Spec
    model: Model
    states_shared: bool = False
    """Plain replicas share the optimizer's states."""
    where: Where
    assumptions: tuple[str, ...]
    """What the entry leaves open, and what was taken instead."""
