"""``layout:`` of a file: degrees that are given, derived, or left to the search."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from planner.spec.door import check
from planner.spec.faults import Document, Faults, Keys, show
from planner.spec.fields import Bounds, Schema
from planner.spec.layout import Layout, ZeroStage

Degree = Annotated[
    int,
    Bounds(above=0, most=2**30),
    Schema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}),
]
Stage = Annotated[ZeroStage, Schema({"anyOf": [{"enum": [0, 1, 2, 3]}, {"const": "auto"}]})]

_AT: Keys = ("layout",)
_AXES = ("tp", "pp", "sp")
"""Whose degrees, together with dp, multiply to the number of devices."""


@dataclass(init=False, eq=False, repr=False)
class LayoutEntry:
    """The degrees of every axis.

    A degree that is left out is 1. If any is `auto` the layout is searched for: degrees that
    are given stay, those that are left out are searched, too.
    """

    dp: Degree | None = None
    """Follows from the number of devices; may be left out."""
    tp: Degree = 1
    """Tensor parallelism."""
    pp: Degree = 1
    """Pipeline parallelism."""
    ep: Degree = 1
    """Expert parallelism; divides dp."""
    sp: Degree = 1
    """Ulysses sequence parallelism."""
    zero_stage: Stage | None = None
    """Left out: what `deepspeed.zero_optimization.stage` says, else 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Degrees:
    """What a file says about its layout."""

    search: bool
    """Left to the search."""
    given: Mapping[str, int] = field(default_factory=dict)
    """The degrees that the file states, ``zero_stage`` among them."""


def read_degrees(document: Document, faults: Faults) -> Degrees | None:
    """Read the section; None if it has faults, which are booked."""
    data = document.data.get("layout")
    if data is None or data == "auto":
        return Degrees(search=True)
    if not isinstance(data, dict):
        faults.add(
            document, _AT, f"{show(data)} is not a layout; write `auto`, or degrees below it"
        )
        return None
    given = {key: value for key, value in data.items() if value != "auto"}
    if check(document, _AT, given, LayoutEntry, faults) is None:
        return None
    return Degrees(search=given != data, given=given)


def make_layout(
    document: Document, degrees: Degrees, num_devices: int, zero_stage: ZeroStage, faults: Faults
) -> Layout | None:
    """Derive ``dp`` and check what must divide what; None if it does not."""
    given = degrees.given
    tp, pp, sp = (given.get(axis, 1) for axis in _AXES)
    ep = given.get("ep", 1)
    dp, rest = divmod(num_devices, tp * pp * sp)
    if rest or not dp:
        _blame(document, given, num_devices, faults)
        return None
    if given.get("dp", dp) != dp:
        message = (
            f"{given['dp']}, but {num_devices} devices / (tp {tp} x pp {pp} x sp {sp}) leave {dp}; "
            f"write {dp} or leave dp out"
        )
        faults.add(document, (*_AT, "dp"), message)
        return None
    if dp % ep:
        message = f"{ep} does not divide dp = {dp}; choose ep from {divisors(dp)}"
        faults.add(document, (*_AT, "ep"), message)
        return None
    return Layout(dp=dp, tp=tp, pp=pp, ep=ep, sp=sp, zero_stage=zero_stage)


def _blame(document: Document, given: Mapping[str, int], num_devices: int, faults: Faults) -> None:
    """Book the fault at the first axis that does not divide what the axes before it leave."""
    left = num_devices
    for axis in _AXES:
        degree = given.get(axis, 1)
        if left % degree:
            message = (
                f"{degree} does not divide {_left(given, axis, num_devices, left)}; "
                f"choose {axis} from {divisors(left)}"
            )
            faults.add(document, (*_AT, axis), message)
            return
        left //= degree


def _left(given: Mapping[str, int], axis: str, num_devices: int, left: int) -> str:
    before = [f"{name} {given[name]}" for name in _AXES[: _AXES.index(axis)] if name in given]
    if not before:
        return f"the {num_devices} devices"
    return f"the {left} that {' and '.join(before)} leave of {num_devices} devices"


def divisors(number: int) -> list[int]:
    """All divisors, ascending; of a very large number only the small ones."""
    return [degree for degree in range(1, min(number, 4096) + 1) if number % degree == 0]
