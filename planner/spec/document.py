"""A YAML (or JSON) file as plain data, with the line of every key and every fault of its syntax.

Scalars mean what YAML 1.2's core schema says, as in JSON: ``yes`` and ``on`` are text, ``5e8`` is a
number. Whatever could surprise or hurt is refused: tags, duplicate keys, merge keys, aliases into
themselves, numbers that are not finite, files and values of absurd size.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from planner.errors import SpecError
from planner.spec.faults import Document, Faults, Keys
from planner.spec.files import read_text

MAX_NODES = 20_000
"""Values in a file, those behind aliases counted each time: ten lines can stand for billions."""
MAX_DEPTH = 50

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Only its parser is used; the one in C is ten times as fast, but not every build has it."""

_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)|[-+]?(Infinity|NaN)")
_WORDS: Mapping[str, bool | None] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_MAX_DIGITS = 30
_MAX_NUMBER = 2**63 - 1
"""The largest that DeepSpeed itself uses, as a threshold that never bites."""


def read_document(path: Path, faults: Faults) -> Document:
    """Read a file; SpecError if it is no readable YAML, else its faults are booked."""
    text = read_text(path)
    if path.suffix == ".json":
        text = text.replace("\t", " ")  # legal in JSON between values, not in YAML
    builder = _Builder(path=path, faults=faults)
    try:
        events = yaml.parse(text, Loader=_LOADER)
        data = builder.document(events)
    except yaml.YAMLError as error:
        raise SpecError(_syntax(path, text, error)) from None
    return Document(path, data, builder.lines)


def _syntax(path: Path, text: str, error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    if mark is None:  # a character that YAML forbids
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        return f"{path}:{line}: a control character; take it out"
    if "end of stream" in problem:  # where it was opened says more than the last line
        mark = getattr(error, "context_mark", None) or mark
    if "\t" in _indent(text, mark.line):
        return f"{path}:{mark.line + 1}: a tab; indent with spaces"
    return (
        f"{path}:{mark.line + 1}: not YAML: {problem}; check the indentation, the brackets "
        "and quotes, and that every key is followed by a colon and a space"
    )


def _indent(text: str, line: int) -> str:
    lines = text.splitlines()
    return lines[line][: len(lines[line]) - len(lines[line].lstrip())] if line < len(lines) else ""


@dataclass(slots=True)
class _Builder:
    """Turns parser events into data; recursion is bounded by `MAX_DEPTH`."""

    path: Path
    faults: Faults
    lines: dict[Keys, int] = field(default_factory=dict)
    num_nodes: int = 0
    _anchors: dict[str, tuple[Any, int] | None] = field(default_factory=dict)
    """Data and number of values behind an anchor; None while it is being read."""

    def document(self, events: Iterator[Event]) -> Any:
        """Build the one document of a file; None if it is empty."""
        data: Any = None
        num_documents = 0
        for event in events:
            if isinstance(event, DocumentStartEvent):
                num_documents += 1
                if num_documents > 1:
                    self._stop(event, (), "a second document; keep one, without `---`")
                data = self._node(next(events), events, ())
        return data

    def _node(self, event: Event, events: Iterator[Event], keys: Keys) -> Any:
        self._count(event, keys)
        if isinstance(event, AliasEvent):
            return self._alias(event, keys)
        anchor = getattr(event, "anchor", None)
        start = self.num_nodes
        if anchor is not None:
            self._anchors[anchor] = None
        data = self._value(event, events, keys)
        if anchor is not None:
            self._anchors[anchor] = (data, self.num_nodes - start)
        return data

    def _value(self, event: Event, events: Iterator[Event], keys: Keys) -> Any:
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            self._fault(event, keys, f"the tag {tag!r}; take it out, plain values are enough")
        if isinstance(event, MappingStartEvent):
            return self._mapping(events, keys)
        if isinstance(event, SequenceStartEvent):
            return self._sequence(events, keys)
        if isinstance(event, ScalarEvent):
            return self._scalar(event, keys)
        raise AssertionError(event)

    def _mapping(self, events: Iterator[Event], keys: Keys) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for event in events:
            if isinstance(event, MappingEndEvent):
                break
            key = self._key(event, events, keys)
            inner = (*keys, key)
            if key in data:
                first = self.lines[inner]
                self._fault(event, inner, f"is here twice, first in line {first}; keep one")
            else:
                self.lines[inner] = _line(event)
            value = self._node(next(events), events, inner)
            data.setdefault(key, value)
        return data

    def _key(self, event: Event, events: Iterator[Event], keys: Keys) -> str:
        if not isinstance(event, ScalarEvent):
            self._node(event, events, (*keys, "?"))
            self._fault(event, keys, "a key that is not plain text; write `key: value`")
            return "?"
        if event.value == "<<":
            self._fault(event, (*keys, "<<"), "merge keys are not read; write the keys out")
        return event.value

    def _sequence(self, events: Iterator[Event], keys: Keys) -> list[Any]:
        data: list[Any] = []
        for event in events:
            if isinstance(event, SequenceEndEvent):
                break
            inner = (*keys, len(data))
            self.lines[inner] = _line(event)
            data.append(self._node(event, events, inner))
        return data

    def _scalar(self, event: ScalarEvent, keys: Keys) -> Any:
        text = event.value
        if event.style:  # quoted, or a block
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _NOT_FINITE.fullmatch(text):
            self._fault(event, keys, f"{text} is not a finite number; write one")
            return 1
        if not _FLOAT.fullmatch(text):
            return text
        value = int(text) if _INT.fullmatch(text) and len(text) <= _MAX_DIGITS else float(text)
        if abs(value) > _MAX_NUMBER:
            shown = text if len(text) <= _MAX_DIGITS else f"a number of {len(text)} characters"
            self._fault(event, keys, f"{shown} is out of all bounds; write less")
            return 1
        return value

    def _alias(self, event: AliasEvent, keys: Keys) -> Any:
        anchor = event.anchor or ""
        held = self._anchors.get(anchor)
        if held is None:
            fault = "holds itself" if anchor in self._anchors else "has no anchor above it"
            self._stop(event, keys, f"the alias *{anchor} {fault}; write the value out")
        data, num_nodes = held
        self.num_nodes += num_nodes
        self._count(event, keys)
        return data

    def _count(self, event: Event, keys: Keys) -> None:
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            self._stop(event, keys, f"more than {MAX_NODES} values, aliases written out; shorten")
        if len(keys) > MAX_DEPTH:
            self._stop(event, keys[:3], f"nested deeper than {MAX_DEPTH} levels; flatten it")

    def _fault(self, event: Event, keys: Keys, message: str) -> None:
        self.faults.add_at(self.path, _line(event), keys, message)

    def _stop(self, event: Event, keys: Keys, message: str) -> NoReturn:
        """Tell what was found so far; going on would be costly or meaningless."""
        self._fault(event, keys, message)
        self.faults.told()
        raise AssertionError(message)


def _line(event: Event) -> int:
    mark = event.start_mark
    return 1 if mark is None else int(mark.line) + 1
