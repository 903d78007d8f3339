"""Plain data against a dataclass: every fault with its line, in words that say the mend."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from planner.spec.faults import Document, Faults, Keys, show

Shape = TypeVar("Shape")

_FEW = 6
"""So many choices are listed whatever was written."""

_EXAMPLES: Mapping[str, str] = {
    "model": "llama-3-8b",
    "cluster": "{nodes: 1, devices_per_node: 8, device: h100-sxm-80gb}",
    "training": "{sequence_length: 4096}",
    "nodes": "8",
    "devices_per_node": "8",
    "device": "h100-sxm-80gb",
    "sequence_length": "4096",
}


def check(
    document: Document, keys: Keys, data: Any, shape: type[Shape], faults: Faults
) -> Shape | None:
    """Make a ``shape`` of the mapping at ``keys``; None if it has faults, which are booked."""
    if data is None:
        data = {}  # `training:` with nothing below it: its missing keys are told
    if not isinstance(data, dict):
        message = f"{show(data)} is not a mapping; write its keys indented below it: "
        faults.add(document, keys, message + ", ".join(names(shape)))
        return None
    try:
        made: Shape = _adapter(shape).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            at = _inside(data, detail["loc"])
            faults.add(document, (*keys, *at), _say(detail, (*keys, *at), shape))
        return None
    return made


def names(shape: type) -> list[str]:
    """The keys that a section has."""
    return [field.name for field in fields(shape)]


def suggest(name: str, known: list[str]) -> str:
    """Offer the near names; all of them if there are few or none is near."""
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return listed(known)


def listed(known: list[str]) -> str:
    """Offer all names."""
    return f"choose from {', '.join(known)}"


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def _inside(data: Any, location: tuple[int | str, ...]) -> Keys:
    """The part of pydantic's location that is a path in the data, with a missing last key."""
    keys: Keys = ()
    for step in location:
        held = isinstance(data, dict) or (isinstance(data, list) and isinstance(step, int))
        if not held:
            break
        keys = (*keys, step)
        try:
            data = data[step]
        except (KeyError, IndexError):
            break
    return keys


def _say(detail: ErrorDetails, keys: Keys, shape: type) -> str:
    words = _WORDS.get(detail["type"])
    if words is not None:
        return words(detail, keys, shape)
    return f"{show(detail['input'])}: {detail['msg']}"


def _missing(detail: ErrorDetails, keys: Keys, shape: type) -> str:
    del detail, shape
    example = _EXAMPLES.get(str(keys[-1]))
    return f"is missing; add `{keys[-1]}: {example}`" if example else "is missing; add it"


def _unknown(detail: ErrorDetails, keys: Keys, shape: type) -> str:
    """Offer the keys of the innermost section that pydantic was in."""
    section = shape
    for step in detail["loc"][:-1]:
        section = _section(section, str(step))
    return f"is not a key here; {suggest(str(keys[-1]), names(section))}"


def _section(shape: type, name: str) -> type:
    """The dataclass that a field holds, optional or not."""
    hint = get_type_hints(shape)[name]
    held: type = next(
        each for each in (hint, *get_args(hint)) if hasattr(each, "__pydantic_config__")
    )
    return held


def _int(detail: ErrorDetails, keys: Keys, shape: type) -> str:
    del keys, shape
    value = detail["input"]
    text = str(value).replace("_", "").replace(",", "")
    if isinstance(value, float) and value.is_integer():
        text = str(int(value))
    mend = f"write {text}" if re.fullmatch(r"-?\d+", text) else "write it without quotes or unit"
    return f"{show(value)} is not a whole number; {mend}"


def _float(detail: ErrorDetails, keys: Keys, shape: type) -> str:
    del keys, shape
    return f"{show(detail['input'])} is not a number; write it without quotes or unit"


def _bool(detail: ErrorDetails, keys: Keys, shape: type) -> str:
    del keys, shape
    return f"{show(detail['input'])} is neither true nor false; write one of them, without quotes"


def _text(detail: ErrorDetails, keys: Keys, shape: type) -> str:
    del keys, shape
    value = detail["input"]
    mend = f"write '{value}'" if isinstance(value, int | float) else "write a name"
    return f"{show(value)} is not text; {mend}"


def _choice(detail: ErrorDetails, keys: Keys, shape: type) -> str:
    del keys, shape
    choices = re.findall(r"'([^']*)'|(\d+)", detail["ctx"]["expected"])
    known = [text or number for text, number in choices]
    value = detail["input"]
    if value in known:  # a number in quotes
        return f"{show(value)} is not a choice; write {value} without quotes"
    few = len(known) <= _FEW
    return f"{show(value)} is not a choice; {listed(known) if few else suggest(str(value), known)}"


def _bound(word: str, key: str) -> Callable[[ErrorDetails, Keys, type], str]:
    def say(detail: ErrorDetails, keys: Keys, shape: type) -> str:
        del keys, shape
        limit = detail["ctx"][key]
        return f"{show(detail['input'])} is out of bounds; write a number {word} {limit:g}"

    return say


def _value(detail: ErrorDetails, keys: Keys, shape: type) -> str:
    del keys, shape
    return str(detail["ctx"]["error"])


def _mapping(detail: ErrorDetails, keys: Keys, shape: type) -> str:
    del shape
    return f"{show(detail['input'])} is not a mapping; write the keys of {keys[-1]} below it"


def _list(detail: ErrorDetails, keys: Keys, shape: type) -> str:
    del keys, shape
    return f"{show(detail['input'])} is not a list; write it in brackets"


_WORDS: Mapping[str, Callable[[ErrorDetails, Keys, type], str]] = {
    "missing": _missing,
    "unexpected_keyword_argument": _unknown,
    "int_type": _int,
    "int_from_float": _int,
    "float_type": _float,
    "bool_type": _bool,
    "string_type": _text,
    "literal_error": _choice,
    "greater_than": _bound("above", "gt"),
    "greater_than_equal": _bound("of at least", "ge"),
    "less_than": _bound("below", "lt"),
    "less_than_equal": _bound("of at most", "le"),
    "value_error": _value,
    "dataclass_type": _mapping,
    "dict_type": _mapping,
    "list_type": _list,
}
