"""The search: every legal layout, those that fit by speed, the others by what they lack."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from planner.errors import LayoutError, RefusedError
from planner.model.description import Model
from planner.plan import named_model, told
from planner.search.candidate import Candidate
from planner.search.exact import Held, hold
from planner.search.misfits import count_misfits
from planner.search.pace import step_seconds, step_tokens
from planner.search.space import Space, make_space
from planner.spec.load import Spec

Clock = Callable[[], float]


class Ranked(NamedTuple):
    """A layout that fits, with its speed."""

    held: Held
    step_seconds: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a search found."""

    spec: Spec
    model: Model
    num_layouts: int
    """Legal ones."""
    ranked: tuple[Ranked, ...]
    """Those that fit, best first."""
    misfits: Mapping[str, int]
    """How many do not fit for each reason, most frequent first."""
    nearest: Held
    """The one that leaves most room, or lacks least."""
    seconds: float

    @property
    def best(self) -> Candidate:
        """The fastest that fits; what comes nearest, if none does."""
        return (self.ranked[0].held if self.ranked else self.nearest).candidate


def search(spec: Spec, *, clock: Clock) -> Answer:
    """Walk every legal layout of a file.

    Raises:
        RefusedError: the engine refuses whatever the file leaves open; its reasons.
        LayoutError: no degrees multiply to the number of devices.

    """
    start = clock()
    model = named_model(spec)
    space = _something(spec, make_space(spec, model))
    walked = [hold(spec, model, candidate) for candidate in space.candidates()]
    ranked = [_ranked(spec, model, held) for held in walked if held.fits]
    return Answer(
        spec=spec,
        model=model,
        num_layouts=len(walked),
        ranked=tuple(sorted(ranked, key=_best_first)),
        misfits=count_misfits([held for held in walked if not held.fits]),
        nearest=min(walked, key=lambda held: (held.host_over_bytes, held.device_bytes)),
        seconds=clock() - start,
    )


def _something(spec: Spec, space: Space) -> Space:
    """The space itself; an error if there is nothing in it."""
    if space.refused:
        raise RefusedError("\n".join(told(spec, refusal) for refusal in space.refused))
    if not space.families:
        raise LayoutError(
            f"{spec.at('search')}: no degrees that the file allows multiply to "
            f"{spec.cluster.num_devices} devices and divide the batch; allow more"
        )
    return space


def _ranked(spec: Spec, model: Model, held: Held) -> Ranked:
    seconds = step_seconds(spec, model, held.candidate)
    return Ranked(held, seconds, step_tokens(spec, held.candidate) / seconds)


def _best_first(ranked: Ranked) -> tuple[float, int]:
    """The fastest; of equal ones that with most room."""
    return -ranked.tokens_per_second, ranked.held.device_bytes
