"""``planner models``: the catalogue, as a JSON document and as a table."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.model.catalogue import Entry, entries

WIDE = 150
NARROW = 100
"""Below it nothing is said of what was published, so that no name is cut in two."""

_EXACT = "parameters: exact, as transformers 5.23 builds the model."
_PUBLISHED = (
    "published: what its publisher or a model hub states. Where they differ, --json says why: "
    "heads stored twice, buffers, extra layers."
)
_OTHERS = (
    "A model can also be the path of a config.json or of its folder, its keys in the file, or an "
    "inventory made with `planner model import DIR`."
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
    last = "source" if width >= WIDE else "also known as"
    kinds = ["model", "family", "parameters", "published", last]
    remarks = [_EXACT, _PUBLISHED, _OTHERS]
    if width < NARROW:
        kinds.remove("published")
        remarks.remove(_PUBLISHED)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for kind in kinds:
        is_number = kind in {"parameters", "published"}
        table.add_column(kind, justify="right" if is_number else "left", no_wrap=kind != last)
    for entry in entries():
        table.add_row(*(_cell(entry, kind) for kind in kinds))
    return Group(table, Text(), *(Text(remark, style="dim") for remark in remarks))


def _cell(entry: Entry, kind: str) -> str:
    match kind:
        case "model":
            return entry.name
        case "family":
            return entry.family
        case "parameters":
            return f"{entry.parameters:,}"
        case "published":
            return _published(entry)
        case "source":
            return entry.source
        case _:
            return ", ".join(entry.aliases)


def _published(entry: Entry) -> str:
    if entry.published is None:
        return ""
    return "same" if entry.published == entry.parameters else f"{entry.published:,}"
