"""The catalogues of devices and links, and what an architecture makes PyTorch allocate."""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from planner.errors import SpecError
from planner.spec.cluster import Device, Link
from planner.units import MIB, parse_bytes

_HERE = Path(__file__).parent
_SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C is ten times as fast, but not every build of PyYAML has it."""

_WORKSPACE_BYTES: Mapping[str, int] = {
    "volta": 8_519_680,
    "turing": 8_519_680,
    "ampere": 8_519_680,
    "ada": 8_519_680,
    "hopper": 32 * MIB,
    "blackwell": 32 * MIB,
    "cdna2": 32 * MIB,
    "cdna3": 128 * MIB,
    "cpu": 0,
}
"""Of one cuBLAS (hipBLAS) handle on one stream, as PyTorch 2.13 sizes it."""

_TRAINING_HANDLES = 2
"""The thread of the forward pass and autograd's thread of the device each reserve a handle."""


def read_catalogue(path: Path) -> Any:
    """Read a YAML file of this package."""
    with path.open(encoding="utf-8") as file:
        return yaml.load(file, Loader=_SAFE_LOADER)  # noqa: S506 - both loaders are safe ones


@cache
def devices() -> Mapping[str, Device]:
    """Every device of the catalogue by its name, in the order of the file."""
    rows = read_catalogue(_HERE / "devices.yaml")
    return MappingProxyType({name: _device(name, row) for name, row in rows.items()})


@cache
def links() -> Mapping[str, Link]:
    """Every link of the catalogue by its name, in the order of the file."""
    rows = read_catalogue(_HERE / "links.yaml")
    return MappingProxyType({name: _link(name, row) for name, row in rows.items()})


def names() -> tuple[str, ...]:
    """Names that `device` knows."""
    return tuple(devices())


def device(name: str) -> Device:
    """Look a device up; SpecError lists the near names and the way out."""
    found = devices().get(name)
    if found is None:
        raise SpecError(
            f"device {name!r} is not in the catalogue; {_suggest(name, names())}, "
            "or describe it: {like: h100-sxm-80gb, memory: 79.1GiB}"
        )
    return found


def link(name: str) -> Link:
    """Look a link up; SpecError lists the near names."""
    found = links().get(name)
    if found is None:
        raise SpecError(f"link {name!r} is not in the catalogue; {_suggest(name, tuple(links()))}")
    return found


def workspace_bytes(device: Device) -> int:
    """Size what cuBLAS workspaces hold of PyTorch's allocator on a device that trains, in bytes.

    ``2 W``: one workspace per handle and stream, kept until the process ends. W is 32 MiB on
    Hopper and Blackwell, ``4096 KiB * 2 + 16 KiB * 8`` = 8,519,680 B before, 32 MiB with ROCm and
    128 MiB on gfx942. cuBLASLt shares the workspace. Source: PyTorch,
    aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize and setWorkspaceForHandle;
    pull requests 91564 (the sizes, 2023-01), 175344 (Blackwell, 2026-02) and 168175 (cuBLASLt's
    unified with cuBLAS's, 2026-01). ``CUBLAS_WORKSPACE_CONFIG`` changes W. From 2.15 on (pull
    request 194311, 2026-08) a workspace lives for one multiplication only.
    """
    return _TRAINING_HANDLES * handle_workspace_bytes(device)


def handle_workspace_bytes(device: Device) -> int:
    """Size W of one handle's workspace, see `workspace_bytes`."""
    return _WORKSPACE_BYTES[device.architecture]


def _device(name: str, row: Mapping[str, Any]) -> Device:
    return Device(
        name=name,
        memory_bytes=parse_bytes(row["memory"]),
        architecture=row["architecture"],
        memory_bandwidth_bytes_per_second=float(parse_bytes(row["memory_bandwidth"])),
        bf16_flops_per_second=row["bf16_tflops"] * 1e12,
        fp32_flops_per_second=row["fp32_tflops"] * 1e12,
        peer_link=row["peer_link"],
        host_link=row["host_link"],
    )


def _link(name: str, row: Mapping[str, Any]) -> Link:
    return Link(
        name=name,
        kind=row["kind"],
        bandwidth_bytes_per_second=float(parse_bytes(row["bandwidth"])),
    )


def _suggest(name: str, known: tuple[str, ...]) -> str:
    """Offer the near names, or all of them where none is near."""
    near = get_close_matches(name, known, n=3, cutoff=0.5) or [
        other for other in known if other.startswith(name.split("-", maxsplit=1)[0])
    ]
    if near:
        return f"did you mean {' or '.join(near)}? (`planner devices` lists all)"
    return f"choose from {', '.join(known)}"
