"""One candidate walked exactly: what `planner plan` says of it."""

from typing import NamedTuple

from planner.memory.terms import Term
from planner.model.description import Model
from planner.plan import make_plan
from planner.planned import Plan
from planner.search.candidate import Candidate
from planner.spec.load import Spec

OF_MICRO_BATCHES = (Term.ACTIVATIONS, Term.LOGITS, Term.TRANSIENT, Term.PIPELINE_BUFFERS)
"""Terms that grow with the micro-batch."""


class Held(NamedTuple):
    """The worst rank of a candidate, and whether its device and its host hold it."""

    candidate: Candidate
    stage: int
    phase: str
    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int
    device_high_bytes: int
    """Upper end of the band."""
    capacity_bytes: int
    host_bytes: int
    """Of the rank that keeps most there."""
    host_over_bytes: int
    """What the host lacks."""
    activation_bytes: int
    """Of the peak, what belongs to micro-batches."""

    @property
    def headroom_bytes(self) -> int:
        """What the worst rank leaves of its device."""
        return self.capacity_bytes - self.device_bytes

    @property
    def fits(self) -> bool:
        """As a plan's verdict says it."""
        return self.headroom_bytes >= 0 and not self.host_over_bytes


def hold(spec: Spec, model: Model, candidate: Candidate) -> Held:
    """Plan a candidate."""
    return held(make_plan(candidate.applied(spec), model=model), candidate)


def held(plan: Plan, candidate: Candidate) -> Held:
    """What a search needs to know of a plan."""
    worst = plan.worst
    return Held(
        candidate=candidate,
        stage=worst.stage,
        phase=worst.peak.phase,
        allocated_bytes=worst.peak.peak_bytes,
        reserved_bytes=worst.beyond.reserved_bytes,
        device_bytes=worst.beyond.device_bytes,
        device_high_bytes=worst.beyond.device_high_bytes,
        capacity_bytes=plan.capacity_bytes,
        host_bytes=max(rank.host_bytes for rank in plan.ranks),
        host_over_bytes=plan.host_over_bytes,
        activation_bytes=sum(worst.peak.terms.get(term, 0) for term in OF_MICRO_BATCHES),
    )
