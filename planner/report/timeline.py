"""What a rehearsed rank holds, allocation by allocation, as a picture; needs matplotlib."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import PlannerError
from planner.memory.terms import Term
from planner.units import GIB

MOST_POINTS = 1200
"""More than a picture is wide: of neighbours the highest is drawn."""

NUM_COLOURS = 10
"""Of matplotlib's cycle; the second time they are hatched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One value an event, in bytes."""

    allocated: Mapping[str, tuple[int, ...]]
    """By label, what tensors hold; in the order of `Term`."""
    reserved: tuple[int, ...]
    phases: tuple[tuple[int, str], ...]
    """Where each starts."""


def series(snapshot: Mapping[str, Any], most: int = MOST_POINTS) -> Series:
    """The running sums of a snapshot's events, thinned to about ``most``.

    ``snapshot`` is what `rehearse.snapshot` makes.
    """
    events = snapshot["device_traces"][0]
    width = max(1, -(-len(events) // most))
    kept = list(_highest(events, width))
    labels = {label for held, _ in kept for label in held}
    return Series(
        allocated={
            label: tuple(held.get(label, 0) for held, _ in kept)
            for label in sorted(labels, key=_place)
        },
        reserved=tuple(reserved for _, reserved in kept),
        phases=tuple(
            (note["time_us"] // width, note["name"])
            for note in snapshot["external_annotations"]
            if note["stage"] == "START"
        ),
    )


def _highest(
    events: Sequence[Mapping[str, Any]], width: int
) -> Iterator[tuple[dict[str, int], int]]:
    """Of every ``width`` events the one after which most is allocated: by label, and reserved."""
    held: dict[str, int] = {}
    owners: dict[int, str] = {}
    reserved = 0
    for start in range(0, len(events), width):
        best, top = {}, (-1, 0)
        for event in events[start : start + width]:
            reserved += _follow(event, held, owners)
            now = sum(held.values()), reserved
            if now > top:
                best, top = held.copy(), now
        yield best, top[1]


def _follow(event: Mapping[str, Any], held: dict[str, int], owners: dict[int, str]) -> int:
    """Count an event to its label; what it changes of the reserved bytes."""
    action, address, size = event["action"], event.get("addr", 0), event["size"]
    if action == "alloc":
        label = owners[address] = event["category"]
        held[label] = held.get(label, 0) + size
    elif action == "free_requested":
        held[owners[address]] -= size
    elif action in {"segment_alloc", "segment_map"}:
        return int(size)
    elif action in {"segment_free", "segment_unmap"}:
        return -int(size)
    return 0


def draw(axes: Any, drawn: Series, *, title: str, capacity_bytes: int | None) -> None:
    """Allocated bytes stacked by label, reserved bytes as a line, phases as marks."""
    places = range(len(drawn.reserved))
    stacks = [[size / GIB for size in sizes] for sizes in drawn.allocated.values()]
    colours = [f"C{_place(label) % NUM_COLOURS}" for label in drawn.allocated]
    hatches = ["" if _place(label) < NUM_COLOURS else "///" for label in drawn.allocated]
    names = [label.replace("_", " ") for label in drawn.allocated]
    axes.stackplot(places, stacks, labels=names, colors=colours, hatch=hatches, step="post")
    axes.plot(
        places, [size / GIB for size in drawn.reserved], color="black", lw=1, label="reserved"
    )
    if capacity_bytes is not None and capacity_bytes < 2 * max(drawn.reserved):
        axes.axhline(capacity_bytes / GIB, color="red", lw=0.8, label="left for PyTorch")
    for place, name in drawn.phases:
        axes.axvline(place, color="grey", lw=0.5)
        axes.text(place, 1.0, f" {name}", transform=axes.get_xaxis_transform(), rotation=30)
    axes.set(
        xlabel="allocations and frees", ylabel="GiB", xlim=(0, len(places) - 1), ylim=(0, None)
    )
    axes.set_title(title, pad=32)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _place(label: str) -> int:
    """Of the label among the terms; what is no term comes last."""
    return _PLACES.get(label, len(_PLACES))


_PLACES = {term.label: int(term) for term in Term}


def save(drawn: Series, path: Path, *, title: str, capacity_bytes: int | None) -> None:
    """Write the picture in the format of the path's suffix; PlannerError without matplotlib."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra, and a second to import

        mpl.use("Agg")
        from matplotlib import pyplot as plt  # noqa: PLC0415
    except ModuleNotFoundError:
        raise PlannerError(
            f"--figure {path}: matplotlib draws it; install planner[report]"
        ) from None
    figure, axes = plt.subplots(figsize=(11, 5), layout="constrained")
    draw(axes, drawn, title=title, capacity_bytes=capacity_bytes)
    try:
        figure.savefig(path, dpi=100)
    except ValueError as error:
        raise PlannerError(f"--figure {path}: {error}; write e.g. {path.stem}.svg") from None
    finally:
        plt.close(figure)
