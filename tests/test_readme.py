"""The README's map of the folders is the tree, and its links lead somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_map_of_folders_is_the_tree():
    told = set(re.findall(r"^\| `([\w/]+/)` \|", README, re.MULTILINE))
    packages = {
        f"planner/{p.name}/" for p in (ROOT / "planner").iterdir() if (p / "__init__.py").exists()
    }
    others = {"cluster_configs/", "experiments/", "tests/", "docs/"}
    assert told == packages | others


def test_links_lead_to_files():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/*/*.md")]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    ]
    assert links, "there should be some links"
    assert [(p.name, t) for p, t in links if not (p.parent / t).exists()] == []
