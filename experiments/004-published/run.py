"""Tables of predictions beside published measurements: ``python experiments/004-published/run.py``.

Writes results.md beside itself: scores by framework, grade and quantity, scores by cluster, and the
verdicts on runs that fitted or did not; the rows of each page in clusters/; and scatter.png. Ends
with 1 if a cluster is far off and has no page. Two minutes; no torch, no GPU.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pages import FAR, far_clusters, pages, without_page, write_rows
from plot import scatter

from planner.accuracy.compare import Compared, compare, decide
from planner.accuracy.entries import read_entries
from planner.accuracy.predict import MEANT_TO_HOLD
from planner.accuracy.scores import Fits, Score, count_fits, grouped

HERE = Path(__file__).parent
HEAD = "| planned | signed median % | median % | worst % | within 5 % | within 10 % | in band |"


def main() -> None:
    """Compare everything and write the tables."""
    rows = compare(read_entries(HERE / "measurements.yaml"))
    known = [row for row in rows if row.predicted is not None]
    parts = [
        "# Results",
        "Written by `python experiments/004-published/run.py`.",
        _bands(known),
        _table("framework, quantity, grade", rows, _kind),
        _table("cluster, quantity", known, _cluster),
        _verdicts(count_fits(decide(read_entries(HERE / "fits.yaml")))),
    ]
    for page in pages(HERE / "clusters"):
        write_rows(page, known)
    scatter(rows, HERE / "scatter.png")
    (HERE / "results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    lacking = without_page(far_clusters(known), pages(HERE / "clusters"))
    if lacking:
        sys.exit(f"off by more than {FAR:.0%} and without a page: " + "; ".join(lacking))


def _bands(known: Sequence[Compared]) -> str:
    """What bands are meant to hold, and what they do on runs whose configuration is known."""
    plain = [row for row in known if row.entry.completeness == "A" and not row.entry.toy]
    told = [
        f"Bands are meant to hold {100 * MEANT_TO_HOLD:.0f} % of what was measured. Grade A holds"
    ]
    told += [
        f"{100 * (each.inside or 0):.0f} % of {each.num_supported} ({each.name}),"
        for each in grouped(plain, lambda row: row.measured.quantity)
    ]
    return " ".join(told).rstrip(",") + "."


def _verdicts(fits: Fits) -> str:
    return (
        f"fits: {fits.right} right, {fits.wrongly_fits} said to fit that did not, "
        f"{fits.wrongly_refused} said not to fit that did, {fits.undecided} undecided of "
        f"{fits.num_entries}, {fits.num_entries - fits.num_supported} of them not supported"
    )


def _kind(row: Compared) -> str:
    toy = ", toy" if row.entry.toy else ""
    return f"{row.entry.framework}, {row.measured.quantity}, {row.entry.completeness}{toy}"


def _cluster(row: Compared) -> str:
    return f"{row.entry.cluster}, {row.measured.quantity}"


def _table(name: str, rows: Sequence[Compared], key: Callable[[Compared], str]) -> str:
    lines = [f"| {name} {HEAD}", "|---" + "|--:" * 7 + "|"]
    return "\n".join(lines + [_line(score) for score in grouped(rows, key)])


def _line(score: Score) -> str:
    shown = [
        _percent(score.signed_median, "+.2f"),
        _percent(score.median_error, ".2f"),
        _percent(score.worst_error, ".1f"),
        *(_percent(share, ".0f") for share in (score.within_5, score.within_10, score.inside)),
    ]
    return f"| {score.name} | {score.num_supported}/{score.num_entries} | {' | '.join(shown)} |"


def _percent(value: float | None, form: str) -> str:
    return "" if value is None else format(100 * value, form)


if __name__ == "__main__":
    main()
