"""A case's plan, read as the entry's quantity: like is compared with like."""

from typing import NamedTuple

from planner.accuracy.case import Case, UnsupportedError
from planner.memory.beyond import Beyond, beyond
from planner.memory.timeline import PhasePeak
from planner.plan import Plan, RankPlan, make_plan

ALLOCATED_PER_MILLE = 50
"""Half the width of the band around allocated bytes: what operations that no entry tells about
(masks, kernels' workspaces, another release's temporaries) were seen to make on published runs."""

FIRST = ("init", "first_")
"""Phases up to the end of the first step."""


class Predicted(NamedTuple):
    """A size with its band."""

    low_bytes: int
    size_bytes: int
    high_bytes: int


class Sizes(NamedTuple):
    """What one rank's plan says, quantity by quantity."""

    rank: RankPlan
    phases: tuple[PhasePeak, ...]
    beyond: Beyond
    capacity_bytes: int

    def of(self, quantity: str) -> Predicted:
        """The size of a quantity; UnsupportedError if the planner has none such."""
        held = self.beyond
        match quantity:
            case "max_allocated" | "max_active":
                return _exact(held.allocated_bytes)
            case "static_allocated":
                return _exact(self.phases[-1].end_bytes)
            case "first_peak_allocated":
                return _exact(max(p.peak_bytes for p in self.phases if p.phase.startswith(FIRST)))
            case "allocated_after_init":
                return _exact(self.phases[0].end_bytes)
            case "max_reserved":
                return Predicted(
                    held.reserved_low_bytes, held.reserved_bytes, held.reserved_high_bytes
                )
            case "nvidia_smi" | "stated_peak":
                return Predicted(held.device_low_bytes, held.device_bytes, held.device_high_bytes)
            case _:
                raise UnsupportedError(f"quantity {quantity} is not one that is predicted")


def predict(case: Case, *, num_iterations: int | None) -> Sizes:
    """Plan a case and pick the rank that was read."""
    made = make_plan(case.spec, model=case.model)
    rank = _read(made, case)
    phases = tuple(p for p in rank.phases if num_iterations != 1 or p.phase.startswith(FIRST))
    return Sizes(rank, phases, _beyond(rank, phases, made), made.capacity_bytes)


def _beyond(rank: RankPlan, phases: tuple[PhasePeak, ...], made: Plan) -> Beyond:
    if len(phases) == len(rank.phases):
        return rank.beyond
    layout = made.spec.fixed_layout
    return beyond(
        max(phase.peak_bytes for phase in phases),
        device=made.spec.cluster.device,
        num_groups=2 * (layout.num_devices > 1) + (layout.tp > 1) + (layout.pp > 1),
    )


def _read(made: Plan, case: Case) -> RankPlan:
    if case.where == "worst":
        return made.worst
    stage = made.stages[-1].stage if case.where == "last" else case.where
    found = [rank for rank in made.stages if rank.stage == stage]
    if not found:
        raise UnsupportedError(f"there is no pipeline stage {stage}")
    return found[0]


def _exact(size: int) -> Predicted:
    margin = size * ALLOCATED_PER_MILLE // 1000
    return Predicted(size - margin, size, size + margin)
