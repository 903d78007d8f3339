"""Faults of a file: where, what, and the mend; all of them told at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.errors import SpecError

Keys = tuple[str | int, ...]
"""Where a value stands: ``("cluster", "nodes")``."""

_SHOWN = 60
"""Characters of a value or a key that a message quotes."""


@dataclass(frozen=True, slots=True)
class Document:
    """What a file holds."""

    path: Path
    data: Any
    lines: Mapping[Keys, int]

    def where(self, keys: Keys) -> str:
        """``file:line: a.b``, the line being that of the nearest key that is in the file."""
        return place(self.path, self.line(keys), keys)

    def line(self, keys: Keys) -> int:
        """Line of a key; of what it would stand in, if it is not in the file."""
        known = next((keys[:n] for n in range(len(keys), 0, -1) if keys[:n] in self.lines), ())
        return self.lines.get(known, 1)


@dataclass(slots=True)
class Faults:
    """What is wrong with a file and those it names; told all at once."""

    _found: list[tuple[str, int, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, document: Document, keys: Keys, message: str) -> None:
        """Book a fault of a key: what is wrong; how to mend it."""
        self.add_at(document.path, document.line(keys), keys, message)

    def add_at(self, path: Path, line: int, keys: Keys, message: str) -> None:
        """Book a fault where no document exists yet."""
        self._found.append((str(path), line, f"{place(path, line, keys)}: {message}"))

    def warn(self, document: Document, keys: Keys, message: str) -> None:
        """Book what the plan will not reflect."""
        self.warnings.append(f"{document.where(keys)}: {message}")

    def __len__(self) -> int:
        return len(self._found)

    def told(self) -> None:
        """Raise SpecError if there is any fault, in the order of the lines."""
        if self._found:
            unique = sorted(dict.fromkeys(self._found), key=lambda found: found[:2])
            raise SpecError("\n".join(text for _, _, text in unique))


def place(path: Path, line: int, keys: Keys) -> str:
    """``file:line: a.b.0``; the key is left out for the file as a whole."""
    key = ".".join(_key(key) for key in keys)
    return f"{path}:{line}: {key}" if key else f"{path}:{line}"


def show(value: Any) -> str:
    """A value as a message quotes it: on one line, not too long."""
    words = {None: "nothing", True: "true", False: "false"}
    if isinstance(value, bool) or value is None:
        return words[value]
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _key(key: str | int) -> str:
    text = str(key) if str(key).isprintable() else repr(key)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
