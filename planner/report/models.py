"""``planner models``: the catalogue, as a JSON document and as a table."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.model.catalogue import Entry, entries

WIDE = 150
_REMARKS = (
    """parameters: exact, as transformers 5.23 builds the model; published: what its publisher or a
    model hub states. Where they differ, --json says why: heads stored twice, buffers, extra layers.
    """,
    """A model can also be the path of a config.json or of its folder, its keys in the file, or an
    inventory made with `planner model import DIR`.""",
)


def document() -> dict[str, Any]:
    """Build ``planner.models/1``."""
    return {
        "schema": "planner.models/1",
        "models": [
            {
                "name": entry.name,
                "aliases": list(entry.aliases),
                "family": entry.family,
                "parameters": entry.parameters,
                "published": entry.published,
                "source": entry.source,
                "note": entry.note,
            }
            for entry in entries()
        ],
    }


def render(*, width: int) -> RenderableType:
    """One line a model; a wide terminal shows the sources."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("model", "family"):
        table.add_column(heading, no_wrap=True)
    for heading in ("parameters", "published"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("source" if width >= WIDE else "also known as", overflow="fold")
    for entry in entries():
        table.add_row(*_row(entry, wide=width >= WIDE))
    remarks = [Text(" ".join(remark.split()), style="dim") for remark in _REMARKS]
    return Group(table, Text(), *remarks)


def _row(entry: Entry, *, wide: bool) -> tuple[str, ...]:
    published = "" if entry.published is None else _published(entry)
    aliases = ", ".join(entry.aliases)
    return (
        entry.name,
        entry.family,
        f"{entry.parameters:,}",
        published,
        (entry.source if wide else aliases),
    )


def _published(entry: Entry) -> str:
    return "same" if entry.published == entry.parameters else f"{entry.published:,}"
