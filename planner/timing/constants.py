"""What is reached of stated peaks; `constants.yaml` names the source of each figure."""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from planner.spec.cluster import Device, Link
from planner.spec.devices import read_catalogue

_PATH = Path(__file__).with_name("constants.yaml")
MICRO = 1e-6


class AttentionShare(NamedTuple):
    """Of the peak, what fused attention reaches."""

    forward: float
    backward: float


def product_flops_per_second(device: Device, precision: str) -> float:
    """What large products reach: of the matrix units, or outside them in fp32."""
    peak = device.fp32_flops_per_second if precision == "fp32" else device.bf16_flops_per_second
    return peak * float(_read()["product_share"][device.architecture])


def multiprocessors(device: Device) -> int:
    """Among how many a product's tiles are dealt out."""
    return int(_read()["multiprocessors"][device.architecture])


def attention_share(device: Device) -> AttentionShare:
    """Of the matrix units' peak."""
    known = _read()["attention_share"]
    return AttentionShare(**known.get(device.architecture, known["default"]))


def memory_bytes_per_second(device: Device) -> float:
    """What large element-wise operations reach."""
    return device.memory_bandwidth_bytes_per_second * constant("memory_share")


def link_bytes_per_second(link: Link) -> float:
    """What NCCL reaches of a link's bandwidth; a link with a figure of its own, or its kind."""
    known = _read()["link_share"]
    return link.bandwidth_bytes_per_second * float(known.get(link.name, known[link.kind]))


def hop_seconds(kind: str) -> float:
    """Latency of one step of a ring, or of a level of a tree."""
    return MICRO * float(_read()["hop_microseconds"][kind])


def constant(name: str) -> float:
    """One of the plain numbers."""
    return float(_read()[name])


@cache
def _read() -> Any:
    return read_catalogue(_PATH)
