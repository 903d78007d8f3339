"""Every layout that the engine accepts for a file, with the choices that the file leaves open.

What the engine refuses is asked of the rules that refuse plans; here is only arithmetic: degrees
whose product is the number of devices, micro-batches that divide a replica's share of the batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from math import gcd
from typing import NamedTuple, TypeVar, get_args

from planner.engines.deepspeed.refusal import Refusal, routed_experts
from planner.model.description import Model
from planner.plan import make_run, refusals_of
from planner.search.candidate import Candidate, offload_of
from planner.spec.layout import Layout, ZeroStage
from planner.spec.load import Spec
from planner.spec.search import Offload
from planner.spec.training import Recompute

Choice = TypeVar("Choice")

LARGEST_MICRO_BATCH = 512
"""Sequences; tried in powers of two up to here where no global batch says what divides it."""


class Family(NamedTuple):
    """Candidates that differ in their micro-batch alone."""

    layout: Layout
    recompute: Recompute
    offload: Offload
    micro_batches: tuple[int, ...]
    """Ascending."""

    def candidates(self) -> Iterator[Candidate]:
        """Yield each of them."""
        for size in self.micro_batches:
            yield Candidate(self.layout, size, self.recompute, self.offload)


class Space(NamedTuple):
    """What there is to choose from."""

    families: tuple[Family, ...]
    refused: tuple[Refusal, ...]
    """Why nothing is left to choose, if nothing is: one refusal of each kind."""

    def candidates(self) -> Iterator[Candidate]:
        """Yield every legal choice."""
        for family in self.families:
            yield from family.candidates()


def make_space(spec: Spec, model: Model) -> Space:
    """All legal choices of a file; its complete layout is one of them, not a limit."""
    families: list[Family] = []
    refused: dict[str, Refusal] = {}
    for layout in layouts(spec, model):
        micro_batches = _micro_batches(spec, layout)
        if not micro_batches:
            continue
        for recompute, offload in _knobs(spec, layout):
            family = Family(layout, recompute, offload, micro_batches)
            found = _refusals(spec, model, family)
            if not found:
                families.append(family)
            for refusal in found:
                refused.setdefault(refusal.key, refusal)
    return Space(tuple(families), () if families else tuple(refused.values()))


def _refusals(spec: Spec, model: Model, family: Family) -> tuple[Refusal, ...]:
    """What keeps a family from running, or from being counted; rules ask no micro-batch's size."""
    smallest = next(family.candidates()).applied(spec)
    return refusals_of(smallest, make_run(smallest, model))


def layouts(spec: Spec, model: Model) -> Iterator[Layout]:
    """Degrees whose product is the number of devices, with every ZeRO stage."""
    num_devices, node = spec.cluster.num_devices, spec.cluster.devices_per_node
    within = divisors(node)
    experts = gcd(*routed_experts(model)) or 1
    stages: tuple[ZeroStage, ...] = get_args(ZeroStage)
    for tp in _open(spec, "tp", within):
        for sp in _open(spec, "sp", [s for s in within if s == 1 or node % (tp * s) == 0]):
            for pp in _open(spec, "pp", divisors(num_devices)):
                dp, rest = divmod(num_devices, tp * sp * pp)
                if rest or spec.pinned.get("dp", dp) != dp:
                    continue
                for ep in _open(spec, "ep", divisors(gcd(dp, experts))):
                    if dp % ep == 0:
                        for stage in _open(spec, "zero_stage", stages):
                            yield Layout(dp=dp, tp=tp, pp=pp, ep=ep, sp=sp, zero_stage=stage)


def _open(spec: Spec, name: str, known: Iterable[Choice]) -> Sequence[Choice]:
    """What the file pins, allows, or leaves open, in this order."""
    allowed: Sequence[Choice] = getattr(spec.search, name) or tuple(known)
    if name in spec.pinned:
        return [choice for choice in allowed if choice == spec.pinned[name]]
    return allowed


def _knobs(spec: Spec, layout: Layout) -> Iterator[tuple[Recompute, Offload]]:
    """Recomputation and offload; below ZeRO-3 weights cannot go to the host."""
    choices: tuple[Recompute, ...] = spec.search.recompute or get_args(Recompute)
    offloads = spec.search.offload or (offload_of(spec.deepspeed),)
    for recompute in choices:
        for offload in offloads:
            if offload != "all" or layout.partitions_weights:
                yield recompute, offload


def _micro_batches(spec: Spec, layout: Layout) -> tuple[int, ...]:
    """Sizes that divide a replica's share of the global batch, ascending."""
    whole, allowed = spec.training.global_batch_size, spec.search.micro_batch_size
    if whole is None:
        return allowed or tuple(2**n for n in range(LARGEST_MICRO_BATCH.bit_length()))
    share, rest = divmod(whole, layout.dp)
    return tuple(size for size in (allowed or divisors(share)) if not rest and share % size == 0)


@lru_cache(maxsize=4096)
def divisors(number: int) -> tuple[int, ...]:
    """All divisors, ascending."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return tuple(dict.fromkeys((*small, *(number // d for d in reversed(small)))))
