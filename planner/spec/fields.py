"""Types of what a file may hold, with their bounds and how an editor completes them."""

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from planner.units import parse_bytes

STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
"""For ``__pydantic_config__``: a key that is not a field is a fault."""

_SIZE_SCHEMA = {
    "type": "string",
    "pattern": r"^\d{1,15}(\.\d{1,9})? ?([KMGT]i?B|B)$",
    "examples": ["80GiB"],
}

Count = Annotated[int, Field(gt=0, le=2**31)]
NumNodes = Annotated[int, Field(gt=0, le=2**20)]
NumDevices = Annotated[int, Field(gt=0, le=2**10)]
Tokens = Annotated[int, Field(gt=0, le=2**27)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=1e9)]


def _size(value: object) -> int:
    size = parse_bytes(value)
    if size == 0:
        raise ValueError("0 is no size; leave the key out or write what there is")
    return size


def whole(value: Any) -> Any:
    """``5e8`` as the whole number that it is: DeepSpeed's files write counts of elements so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Bytes = Annotated[int, BeforeValidator(_size), WithJsonSchema(_SIZE_SCHEMA)]
Elements = Annotated[int, Field(ge=0), BeforeValidator(whole)]
"""Counts elements, not bytes, as DeepSpeed's buckets do."""
Whole = Annotated[int, Field(gt=0, le=2**31), BeforeValidator(whole)]
"""A count in DeepSpeed's files."""
