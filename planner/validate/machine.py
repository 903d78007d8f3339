"""On what a rank ran."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("torch", "deepspeed", "transformers", "ray", "numpy", "distributed-memory-planner")


def describe_machine(accelerator: str) -> dict[str, Any]:
    """Host, platform, processor or GPU, and the versions of everything that matters."""
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "device": _device(accelerator),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device(accelerator: str) -> str:
    if accelerator != "cuda":
        return accelerator
    import torch

    return str(torch.cuda.get_device_name())
