"""A JSON Schema of the file, for editors that complete and check as one types.

It knows types, names and choices; what must divide what, and what must agree, only `load` knows.
Written by ``python -m planner.spec.schema`` into schema.json beside this file.
"""

import ast
import inspect
import json
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from pydantic import TypeAdapter

from planner.spec import deepspeed_keys
from planner.spec.deepspeed_keys import DeepSpeedKeys
from planner.spec.degrees import LayoutEntry
from planner.spec.fields import STRICT
from planner.spec.machines import ClusterEntry, DeviceEntry
from planner.spec.search import Search
from planner.spec.training import Training

SCHEMA_PATH = Path(__file__).parent / "schema.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A model, the machines, how it is trained, and how it is laid out over them."""

    __pydantic_config__ = STRICT

    model: str | dict[str, Any]
    """A name of `planner models`, a path to a Hugging Face config.json (or its folder), or the
    keys of one."""
    cluster: ClusterEntry
    training: Training
    layout: Literal["auto"] | LayoutEntry = "auto"
    """Left out or `auto`: searched for."""
    search: Search | None = None
    deepspeed: DeepSpeedKeys | None = None


def make_schema() -> dict[str, Any]:
    """Derive the schema from the classes that the loader checks against."""
    schema = TypeAdapter(File).json_schema()
    definitions = schema["$defs"]
    definitions["DeviceEntry"] = TypeAdapter(DeviceEntry).json_schema()
    for shape in _shapes(File) | {DeviceEntry}:
        section = schema if shape is File else definitions[shape.__name__]
        _describe(section, shape)
    names = {"type": "string", "description": "A name of `planner devices`."}
    device = {"anyOf": [names, {"$ref": "#/$defs/DeviceEntry"}]}
    definitions["ClusterEntry"]["properties"]["device"] |= device
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def _shapes(shape: type) -> set[type]:
    """The dataclass and all that its fields hold."""
    found = {shape}
    for hint in get_type_hints(shape).values():
        for inner in (hint, *get_args(hint)):
            if is_dataclass(inner) and isinstance(inner, type):
                found |= _shapes(inner)
    return found


def _describe(section: dict[str, Any], shape: type) -> None:
    """Add the docstrings of the fields; DeepSpeed's may all be ``auto``."""
    texts = _docstrings(shape)
    for name, entry in section["properties"].items():
        entry.pop("title", None)
        if name in texts:
            entry["description"] = texts[name]
        if shape.__module__ == deepspeed_keys.__name__ and "$ref" not in json.dumps(entry):
            section["properties"][name] = _or_auto(entry)


def _or_auto(entry: dict[str, Any]) -> dict[str, Any]:
    outer = {key: entry[key] for key in ("description", "default") if key in entry}
    inner = {key: value for key, value in entry.items() if key not in outer}
    return {"anyOf": [*inner.get("anyOf", [inner]), {"const": "auto"}]} | outer if inner else entry


def _docstrings(shape: type) -> dict[str, str]:
    """The text under each field of a dataclass, on one line."""
    body = ast.parse(inspect.getsource(shape)).body[0]
    assert isinstance(body, ast.ClassDef)
    names = {field.name for field in fields(shape)}
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and field.target.id in names
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def render() -> str:
    """The file's text."""
    return json.dumps(make_schema(), indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA_PATH.write_text(render(), encoding="utf-8")
