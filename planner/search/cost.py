"""What a whole training takes at a speed: time, device-hours, money."""

from typing import NamedTuple

from planner.spec.cluster import Cluster
from planner.spec.search import Search

SECONDS_PER_HOUR = 3600


class Cost(NamedTuple):
    """Of a number of tokens."""

    seconds: float
    device_hours: float
    price: float | None
    """In the currency of ``search.price_per_device_hour``; None: none is told."""


def training_cost(search: Search, cluster: Cluster, tokens_per_second: float) -> Cost | None:
    """``tokens / speed`` on all devices; None where the file tells no tokens."""
    if search.tokens is None:
        return None
    seconds = search.tokens / tokens_per_second
    hours = seconds / SECONDS_PER_HOUR * cluster.num_devices
    rate = search.price_per_device_hour
    return Cost(seconds, hours, None if rate is None else hours * rate)
