"""Peaks of all micro-batches of a layout, every stage checked."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from planner.activations.programs.keeping import checkpoints_by_function
from planner.engines.deepspeed.releases import accumulates_bf16_in_fp32
from planner.engines.deepspeed.stage import Run, multiplies, setup_of
from planner.layout.cut import stages as cut_stages
from planner.layout.stage import Stage
from planner.plan import make_run
from planner.search.closed.alone import alone
from planner.search.closed.cut import Columns, Layers, make_layers
from planner.search.closed.pipeline import piped
from planner.search.closed.profile import Ints
from planner.search.closed.stages import Moment, Stages
from planner.search.closed.state import State, make_state
from planner.search.candidate import with_offload
from planner.spec.devices import handle_workspace_bytes
from planner.spec.layout import Layout
from planner.spec.load import Spec
from planner.spec.search import Offload


class Estimate(NamedTuple):
    """Of one layout: (columns), at the stage that needs most."""

    allocated_bytes: Ints
    stage: Ints
    moment: tuple[str, ...]
    """Names that `where` refers to."""
    where: Ints


def estimate(run: Run, held: Sequence[Stage], layers: Layers, columns: Columns, micro_steps: Ints) -> Estimate:
    setups = [setup_of(run, stage) for stage in held]
    states = tuple(make_state(setup) for setup in setups)
    bounds = np.cumsum([0, *(len(stage.layers) for stage in held)])
    gradients = np.asarray([profile.gradient_bytes for profile in layers.profiles[0]])
    made = Stages(
        run=run,
        setup=setups[0],
        parts=tuple(range(a, b) for a, b in zip(bounds[:-1], bounds[1:])),
        layers=layers,
        states=states,
        gradients=gradients,
        workspaces=np.asarray(
            [2 * handle_workspace_bytes(run.device) * multiplies(stage) for stage in held]
        )[:, None],
        tokens=columns.micro_batches * run.training.sequence_length // run.layout.sp,
        micro_steps=micro_steps,
    )
    all_moments = list(piped(made) if run.layout.pp > 1 else alone(made))
    peaks = np.stack([np.broadcast_to(m.peak_bytes, (len(held), len(micro_steps))) for m in all_moments])
    which = peaks.argmax(axis=0)
    highest = peaks.max(axis=0)
    stage = highest.argmax(axis=0)
    pick = np.arange(highest.shape[1])
    return Estimate(highest[stage, pick], stage, tuple(m.name for m in all_moments), which[stage, pick])
