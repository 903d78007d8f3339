"""Models that are known by name: their configurations, with the keys as published.

``configs/NAME.json`` is a configuration in Hugging Face's form; ``index.json`` says where each
comes from, which total its publisher prints, and the exact one.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

INDEX = Path(__file__).parent / "index.json"
CONFIGS = INDEX.parent / "configs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known of a model beside its configuration."""

    name: str
    family: str
    """``model_type`` of the configuration."""
    parameters: int
    """Exact, as transformers 5.23 builds the model."""
    published: int | None
    """The total that its publisher or a model hub states; None: only a rounded one."""
    source: str
    note: str = ""
    aliases: tuple[str, ...] = ()


@cache
def names() -> tuple[str, ...]:
    """Names of all models, in order."""
    return tuple(sorted(path.stem for path in CONFIGS.glob("*.json")))


def path_of(name: str) -> Path | None:
    """Return the configuration's file; None for a name that is not known."""
    if name in names():
        return CONFIGS / f"{name}.json"
    found = next((entry for entry in entries() if name.lower() in _all_names(entry)), None)
    return None if found is None else CONFIGS / f"{found.name}.json"


@cache
def entries() -> tuple[Entry, ...]:
    """Everything in the index, in the order of names."""
    data = json.loads(INDEX.read_text(encoding="utf-8"))
    return tuple(_entry(name, item) for name, item in sorted(data.items()))


def _entry(name: str, item: dict[str, Any]) -> Entry:
    return Entry(name=name, **{**item, "aliases": tuple(item.get("aliases", ()))})


def _all_names(entry: Entry) -> tuple[str, ...]:
    return entry.name.lower(), *(alias.lower() for alias in entry.aliases)
