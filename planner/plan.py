"""A file's plan: what every rank that differs holds over a step, and whether it fits."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, NamedTuple

from planner.activations.assumptions import activation_assumptions
from planner.engines.deepspeed.assumptions import layout_assumptions
from planner.engines.deepspeed.communicators import num_all_to_all_peers, num_communicators
from planner.engines.deepspeed.limits import limits
from planner.engines.deepspeed.notes import Note
from planner.engines.deepspeed.pass_notes import pass_notes
from planner.engines.deepspeed.refusal import Case, Refusal
from planner.engines.deepspeed.refusals import refusals
from planner.engines.deepspeed.stage import Run, StageRun, checkpoints, run_stage
from planner.errors import LayoutError, ModelError, RefusedError
from planner.layout.cut import expert_grouping, stages, tp_ranks_alike
from planner.layout.ranks import PartitionIndex, coordinates, partition_index
from planner.layout.schedule import in_flight
from planner.layout.stage import Stage
from planner.memory.beyond import Beyond, beyond
from planner.memory.timeline import PhasePeak
from planner.model.description import Model
from planner.model.load import load_model
from planner.spec.load import Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank, and all that hold the same."""

    rank: int
    """The lowest global rank of them."""
    ranks: tuple[int, ...]
    """All ranks that hold exactly the same, ascending."""
    stage: int
    layers: str
    """Which layers of the model the stage holds, for people."""
    coordinates: dict[str, int]
    """Position on each axis."""
    local_parameters: int
    phases: tuple[PhasePeak, ...]
    beyond: Beyond
    """Reserved and device memory at the peak, with their bands."""
    host: dict[str, int]
    """Bytes that the host keeps for the rank, by name."""
    notes: tuple[Note, ...]
    """Why the terms are as large as they are, and who allocates them."""

    @property
    def num_ranks(self) -> int:
        """How many ranks hold exactly the same."""
        return len(self.ranks)

    @property
    def host_bytes(self) -> int:
        """All that the host keeps for the rank."""
        return sum(self.host.values())

    @property
    def peak(self) -> PhasePeak:
        """The phase with the highest point; the first of equal ones."""
        return max(self.phases, key=lambda phase: phase.peak_bytes)


def _need(rank: RankPlan) -> tuple[int, int]:
    """Of the device; where that is full whatever the rank allocates, the allocated bytes tell."""
    return rank.beyond.device_bytes, rank.beyond.allocated_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer to one file."""

    spec: Spec
    model: Model
    ranks: tuple[RankPlan, ...]
    """By stage, then by rank."""
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def worst(self) -> RankPlan:
        """The rank that needs most of its device."""
        return max(self.ranks, key=_need)

    @property
    def stages(self) -> tuple[RankPlan, ...]:
        """The worst rank of every stage."""
        worst: dict[int, RankPlan] = {}
        for rank in self.ranks:
            held = worst.get(rank.stage)
            if held is None or _need(rank) > _need(held):
                worst[rank.stage] = rank
        return tuple(worst[stage] for stage in sorted(worst))

    @property
    def capacity_bytes(self) -> int:
        """Of one device."""
        return self.spec.cluster.device.memory_bytes

    @property
    def headroom_bytes(self) -> int:
        """What the worst rank leaves of its device; below zero it does not fit."""
        return self.capacity_bytes - self.worst.beyond.device_bytes

    @property
    def verdict(self) -> Literal["fits", "tight", "does not fit"]:
        """tight: the estimate fits, the upper end of its band does not."""
        if self.headroom_bytes < 0:
            return "does not fit"
        high = self.worst.beyond.device_high_bytes
        return "fits" if high <= self.capacity_bytes else "tight"


def make_plan(
    spec: Spec, *, every_rank: bool = False, model: Model | None = None, booked: bool = False
) -> Plan:
    """Plan a file; with ``every_rank`` each rank that differs, else the worst of each stage.

    ``model``: what the file names, if it has been loaded before. ``booked``: as a Python ledger
    would see the run, see `Run.booked`.

    Raises:
        RefusedError: DeepSpeed does not run this, or the planner cannot count it; all reasons.

    """
    run = replace(_run(spec, model), booked=booked)
    cut = (run.model, run.layout, run.training, run.deepspeed)
    ranks = [
        rank
        for tp_ranks in tp_ranks_alike(*cut)
        for rank in _plan_stages(
            run, stages(*cut, tp_ranks[0]), _classes(run, tp_ranks), every_rank=every_rank
        )
    ]
    return _plan(spec, run, ranks)


def plan_rank(spec: Spec, rank: int) -> Plan:
    """Plan one global rank; LayoutError if there is none of that number."""
    run = _run(spec, None)
    layout = run.layout
    if not 0 <= rank < layout.num_devices:
        raise LayoutError(
            f"--rank {rank}: the layout has ranks 0 to {layout.num_devices - 1}; choose one of them"
        )
    place = coordinates(rank, layout)
    stage = stages(run.model, layout, run.training, run.deepspeed, place.tp)[place.pp]
    index = partition_index(rank, layout, expert_grouping(layout, run.training))
    own = _rank_plan(run, stage, run_stage(run, stage), (rank,), index)
    return _plan(spec, run, [own])


def notes_of_passes(spec: Spec, rank: int, model: Model) -> tuple[Note, ...]:
    """Why a rank's activations are as large as they are; not part of a plan, as it takes longer."""
    run = _run(spec, model)
    place = coordinates(rank, run.layout)
    stage = stages(model, run.layout, run.training, run.deepspeed, place.tp)[place.pp]
    return tuple(pass_notes(run, stage))


def _run(spec: Spec, model: Model | None) -> Run:
    run = make_run(spec, named_model(spec) if model is None else model)
    refused = refusals_of(spec, run)
    if refused:
        raise RefusedError("\n".join(told(spec, refusal) for refusal in refused))
    return run


def make_run(spec: Spec, model: Model) -> Run:
    """What the engine is told of a file, whether it accepts it or not."""
    return Run(
        model=model,
        training=spec.training,
        layout=spec.fixed_layout,
        deepspeed=spec.deepspeed_for(model.hidden_size),
        device=spec.cluster.device,
        devices_per_node=spec.cluster.devices_per_node,
        micro_steps=spec.micro_steps,
    )


def refusals_of(spec: Spec, run: Run) -> tuple[Refusal, ...]:
    """What DeepSpeed does not run of a file, and what the planner cannot count of it."""
    case = Case(run.model, spec.cluster, run.training, run.layout, run.deepspeed)
    return (*refusals(**case._asdict()), *limits(case))


def named_model(spec: Spec) -> Model:
    """What the file names; a fault of the entry itself is told with the entry's line."""
    try:
        return load_model(spec.model, folder=spec.folder)
    except ModelError as error:
        text = str(error)
        if not text.startswith("model: "):
            raise
        raise ModelError(f"{spec.at('model')}: {text.removeprefix('model: ')}") from None


def told(spec: Spec, refusal: Refusal) -> str:
    """``file:line: key: fault; mend``."""
    where = spec.at(*refusal.key.split("."))
    return f"{where}: {str(refusal).removeprefix(refusal.key + ': ')}"


class _Class(NamedTuple):
    """Ranks of a stage that hold the same, counted from the first rank of their stage."""

    ranks: tuple[int, ...]
    place: PartitionIndex


def _classes(run: Run, tp_ranks: Sequence[int]) -> list[_Class]:
    """The ranks of any stage by their places in the ZeRO groups, lowest rank first."""
    layout, grouping = run.layout, expert_grouping(run.layout, run.training)
    found: dict[PartitionIndex, list[int]] = {}
    for first in range(0, layout.num_devices // layout.pp, layout.tp):
        for tp_rank in tp_ranks:
            index = partition_index(first + tp_rank, layout, grouping)
            found.setdefault(index, []).append(first + tp_rank)
    return [_Class(tuple(ranks), index) for index, ranks in found.items()]


def _plan_stages(
    run: Run, held: Sequence[Stage], classes: Sequence[_Class], *, every_rank: bool
) -> Iterator[RankPlan]:
    """Every class of ranks of every stage, or the stage's worst."""
    places = [each.place for each in classes]
    size = run.layout.num_devices // run.layout.pp
    for stage in held:
        done = run_stage(run, stage)
        chosen = classes if every_rank else [_worst(classes, done.timeline.peaks(places))]
        for ranks, place in chosen:
            own = tuple(stage.index * size + rank for rank in ranks)
            yield _rank_plan(run, stage, done, own, place)


def _worst(classes: Sequence[_Class], peaks: Sequence[int]) -> _Class:
    """The first of those with the highest peak."""
    return classes[peaks.index(max(peaks))]


def _rank_plan(
    run: Run, stage: Stage, done: StageRun, ranks: tuple[int, ...], place: PartitionIndex
) -> RankPlan:
    phases = done.timeline.fold(place)
    return RankPlan(
        rank=ranks[0],
        ranks=ranks,
        stage=stage.index,
        layers=_names(stage),
        coordinates=coordinates(ranks[0], run.layout)._asdict(),
        local_parameters=stage.num_parameters,
        phases=phases,
        beyond=beyond_of(run, max(phase.peak_bytes for phase in phases)),
        host=done.strategy.host_bytes(place.dense) | _checkpoints_on_host(run, stage),
        notes=done.strategy.notes(),
    )


def beyond_of(run: Run, allocated_bytes: int) -> Beyond:
    """What the allocator and the device hold when so much is allocated."""
    return beyond(
        allocated_bytes,
        device=run.device,
        num_groups=num_communicators(run.layout),
        all_to_all_peers=num_all_to_all_peers(run.layout, run.devices_per_node),
    )


def _checkpoints_on_host(run: Run, stage: Stage) -> dict[str, int]:
    size = checkpoints(run, stage).host_bytes(
        in_flight(stage.index, stage.num_stages, run.micro_steps)
    )
    return {"activation_checkpoints": size} if size else {}


def _code_assumptions(run: Run) -> tuple[str, ...]:
    """Whether the family's layers, as transformers runs them, were compared with a run."""
    hf = run.training.implementation == "hf"
    return activation_assumptions(run.model) if hf else ()


def _names(stage: Stage) -> str:
    """``stem, blocks 0-19``: what a stage holds, for people."""
    parts: list[str] = []
    for kind, layers in groupby(stage.layers, key=lambda layer: layer.placed.layer.kind):
        prefixes = [layer.placed.prefix for layer in layers]
        numbers = [n for prefix in (prefixes[0], prefixes[-1]) for n in re.findall(r"\d+", prefix)]
        parts.append(f"{numbers[0]}-{numbers[-1]}" if kind == "block" else kind)
    return " ".join(parts)


def _plan(spec: Spec, run: Run, ranks: Sequence[RankPlan]) -> Plan:
    ordered = tuple(sorted(ranks, key=lambda rank: (rank.stage, rank.rank)))
    return Plan(
        spec=spec,
        model=run.model,
        ranks=ordered,
        assumptions=(
            *layout_assumptions(run.model, run.training, run.layout, run.deepspeed),
            *_code_assumptions(run),
            *ordered[0].beyond.assumptions,
        ),
        warnings=spec.warnings,
    )
