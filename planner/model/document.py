"""JSON files that may hold anything: bounded, without surprises, each key with its line."""

import json
import re
from pathlib import Path
from typing import Any

from planner.model.faults import ConfigError, fault

MAX_FILE_BYTES = 16 * 2**20
"""A configuration has kilobytes, a stored inventory of a thousand different layers a few MB."""


def read_document(path: Path) -> tuple[dict[str, Any], str]:
    """Return the mapping in a JSON file, and its text to find lines in; else `ConfigError`."""
    text = _text(path)
    try:
        data = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise fault(
            str(path),
            f"not JSON: {error.msg} (column {error.colno}); mend the syntax",
            line=error.lineno,
        ) from None
    except RecursionError:
        raise fault(
            str(path), "nested too deeply; a configuration has two or three levels"
        ) from None
    except ValueError as error:
        raise fault(str(path), f"{error}") from None
    if not isinstance(data, dict):
        kind = type(data).__name__
        raise fault(str(path), f"holds a {kind}; a configuration is a mapping: {{...}}", line=1)
    return data, text


def line_of(text: str, key: str) -> int | None:
    """Line of the first place where ``key`` is a key."""
    match = re.search(rf'"{re.escape(key)}"\s*:', text)
    return None if match is None else text.count("\n", 0, match.start()) + 1


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise fault(str(path), "is not a regular file; give a config.json or its folder")
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise fault(str(path), f"has {size} bytes; a model's JSON has at most {MAX_FILE_BYTES}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise fault(
            str(path), f"not text: byte {error.start} is not UTF-8; give a JSON file"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise fault(ascii(str(path)), f"cannot be read: {reason}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that JSON knows; write a finite one")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{', '.join(twice[:5])}: given twice; keep one")
    return data


__all__ = ["MAX_FILE_BYTES", "ConfigError", "line_of", "read_document"]
