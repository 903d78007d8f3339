"""Every entry beside its prediction: none is dropped, and none stops the others."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from planner.accuracy.entries import Entry, Measured
from planner.accuracy.predict import Predicted, Sizes, predict
from planner.accuracy.translate import translate
from planner.errors import PlannerError

Guess = Literal["fits", "does_not_fit", "undecided"]

_FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What a strange entry may make the planner's own code raise: told as our fault, not hidden."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One measured size and what the planner says of it."""

    entry: Entry
    measured: Measured
    predicted: Predicted | None
    """None: not supported, see ``reason``."""
    reason: str = ""
    terms: tuple[tuple[str, int], ...] = ()
    """What is alive at the predicted peak."""
    assumptions: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        assert self.predicted is not None
        return self.predicted.size_bytes / self.measured.size_bytes - 1

    @property
    def inside(self) -> bool:
        """The band holds the measured size."""
        assert self.predicted is not None
        low, _, high = self.predicted
        return low <= self.measured.size_bytes <= high


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """Whether a run fitted, and what the planner says."""

    entry: Entry
    predicted: Guess
    supported: bool
    reason: str = ""


def compare(entries: Iterable[Entry]) -> tuple[Compared, ...]:
    """All entries that measured something, each with the sizes that stand beside its own."""
    return tuple(row for entry in entries if entry.measured for row in _compare(entry))


def decide(entries: Iterable[Entry]) -> tuple[Decided, ...]:
    """All entries that say whether the run fitted."""
    return tuple(_decide(entry) for entry in entries if entry.fits is not None)


def _compare(entry: Entry) -> Iterator[Compared]:
    assert entry.measured is not None
    sizes, assumptions, reason = _sizes(entry)
    for measured in (entry.measured, *entry.further):
        predicted, fault = _predicted(sizes, measured.quantity)
        yield Compared(
            entry=entry,
            measured=measured,
            predicted=predicted,
            reason=reason or fault,
            terms=_terms(sizes),
            assumptions=assumptions,
        )


def _sizes(entry: Entry) -> tuple[Sizes | None, tuple[str, ...], str]:
    """What the plan says, or why there is none."""
    try:
        case = translate(entry)
        sizes = predict(case, num_iterations=entry.num_iterations)
    except PlannerError as error:
        return None, (), _line(error)
    except _FAULTS as error:
        return None, (), f"the planner failed on it: {type(error).__name__}: {_line(error)}"
    return sizes, case.assumptions, ""


def _predicted(sizes: Sizes | None, quantity: str) -> tuple[Predicted | None, str]:
    if sizes is None:
        return None, ""
    try:
        return sizes.of(quantity), ""
    except PlannerError as error:
        return None, str(error)


def _terms(sizes: Sizes | None) -> tuple[tuple[str, int], ...]:
    if sizes is None:
        return ()
    peak = max(sizes.phases, key=lambda phase: phase.peak_bytes)
    return tuple((term.label, size) for term, size in peak.terms.items())


def _decide(entry: Entry) -> Decided:
    sizes, _, reason = _sizes(entry)
    if sizes is None:
        return Decided(entry=entry, predicted="undecided", supported=False, reason=reason)
    guess: Guess = "undecided"
    if sizes.beyond.device_high_bytes <= sizes.capacity_bytes:
        guess = "fits"
    elif sizes.beyond.device_low_bytes > sizes.capacity_bytes:
        guess = "does_not_fit"
    return Decided(entry=entry, predicted=guess, supported=True)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
