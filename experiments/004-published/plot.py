"""Predicted against measured allocated bytes, one dot a run; needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from planner.accuracy.compare import Compared
from planner.units import GIB

COLOURS = {"A": "tab:blue", "B": "tab:orange", "C": "tab:grey"}


def scatter(rows: Sequence[Compared], path: Path) -> None:
    """Write the picture; both axes are logarithmic, in GiB."""
    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(5, 5))
    for grade, colour in COLOURS.items():
        known = [
            row
            for row in rows
            if row.predicted is not None
            and row.entry.completeness == grade
            and row.measured.quantity == "max_allocated"
        ]
        axes.scatter(
            [row.measured.size_bytes / GIB for row in known],
            [row.predicted.size_bytes / GIB for row in known if row.predicted],
            s=8,
            color=colour,
            label=f"{grade}: {len(known)} runs",
        )
    ends = (1, 200)
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set(xlabel="measured, GiB", ylabel="predicted, GiB", title="max_allocated")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)
