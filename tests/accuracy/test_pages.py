"""Every cluster of published measurements that is far off has a page, and no page is about none."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments/004-published"
PAGES = sorted((FOLDER / "clusters").glob("*.md"))
FAR_PERCENT = 8.0


def clusters() -> dict[str, float]:
    """Median errors by cluster and quantity, from the table that run.py has written."""
    table = (FOLDER / "results.md").read_text(encoding="utf-8").partition("| cluster, quantity")[2]
    rows = re.findall(r"^\| (.+?) \| \d+/\d+ \| [^|]* \| ([\d.]+) \|", table, re.MULTILINE)
    return {name: float(median) for name, median in rows}


def covered(page: Path) -> list[str]:
    (line,) = re.findall(r"^Covers: (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [f"{pattern}, *" for pattern in re.findall(r"`([^`]+)`", line)]


def test_every_far_cluster_has_a_page():
    patterns = [pattern for page in PAGES for pattern in covered(page)]
    far = [name for name, median in clusters().items() if median > FAR_PERCENT]
    assert len(far) > 10
    lacking = [name for name in far if not any(fnmatchcase(name, each) for each in patterns)]
    assert [name for name in lacking if "toy" not in name] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_tells_the_term_what_was_tried_and_what_would_settle_it(page):
    text = page.read_text(encoding="utf-8")
    for heading in ("**Term.**", "**Tried.**", "**Would settle it.**"):
        assert heading in text
    for pattern in covered(page):
        assert any(fnmatchcase(name, pattern) for name in clusters()), pattern
