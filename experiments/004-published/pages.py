"""Pages on clusters that are off: a text by hand, and its rows by machine."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from planner.accuracy.compare import Compared
from planner.accuracy.scores import grouped
from planner.units import show_gib

FAR = 0.08
"""Median error of a cluster's quantity from which on it has a page."""

MARK = "<!-- rows: written by run.py -->"
HEAD = "| entry | grade | quantity | measured GiB | planned GiB | error % | largest terms |"
LARGEST = 3


def pages(folder: Path) -> list[Path]:
    """All pages, by name."""
    return sorted(folder.glob("*.md"))


def covers(page: Path) -> list[str]:
    """Patterns of the clusters that a page is about: the code spans of its line ``Covers:``."""
    (line,) = re.findall(r"^Covers: (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return re.findall(r"`([^`]+)`", line)


def far_clusters(known: Sequence[Compared]) -> list[str]:
    """Clusters of which some quantity is far off in the median; toys left out."""
    plain = [row for row in known if not row.entry.toy]
    owner = {_name(row): row.entry.cluster for row in plain}
    return sorted(
        {
            owner[score.name]
            for score in grouped(plain, _name)
            if score.median_error is not None and score.median_error > FAR
        }
    )


def without_page(clusters: Iterable[str], every: Sequence[Path]) -> list[str]:
    """Clusters that no page is about."""
    patterns = [pattern for page in every for pattern in covers(page)]
    return [name for name in clusters if not _matches(name, patterns)]


def write_rows(page: Path, known: Sequence[Compared]) -> None:
    """Put the table of the page's rows in the place of what is below its mark."""
    text = page.read_text(encoding="utf-8").partition(MARK)[0]
    patterns = covers(page)
    rows = [row for row in known if _matches(row.entry.cluster, patterns)]
    table = [HEAD, "|---|---|---|--:|--:|--:|---|", *map(_line, rows)]
    page.write_text(text + MARK + "\n\n" + "\n".join(table) + "\n", encoding="utf-8")


def _name(row: Compared) -> str:
    return f"{row.entry.cluster}, {row.measured.quantity}"


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _line(row: Compared) -> str:
    assert row.predicted is not None
    largest = sorted(row.terms, key=lambda term: -term[1])[:LARGEST]
    cells = [
        row.entry.id,
        row.entry.completeness + (", toy" if row.entry.toy else ""),
        row.measured.quantity.replace("_", " "),
        show_gib(row.measured.size_bytes),
        show_gib(row.predicted.size_bytes),
        f"{100 * row.error:+.1f}",
        ", ".join(f"{name.replace('_', ' ')} {show_gib(size)}" for name, size in largest),
    ]
    return f"| {' | '.join(cells)} |"
