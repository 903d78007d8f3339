"""Degrees of parallelism."""

from dataclasses import dataclass
from typing import Literal

ZeroStage = Literal[0, 1, 2, 3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The degrees of every axis; ``dp`` is what the other axes leave of the devices.

    ``dp * tp * pp * sp`` is the number of devices. ``ep`` divides ``dp``: experts are spread over
    data-parallel ranks. ZeRO partitions over ``dp * sp`` ranks, the experts' state over
    ``dp * sp / ep``.
    """

    dp: int
    tp: int = 1
    pp: int = 1
    ep: int = 1
    sp: int = 1
    """Ulysses sequence parallelism."""
    zero_stage: ZeroStage = 0

    @property
    def num_devices(self) -> int:
        """Devices that the layout uses."""
        return self.dp * self.tp * self.pp * self.sp

    @property
    def partitions_weights(self) -> bool:
        """ZeRO-3: modules gather their weights for use and let them go."""
        return self.zero_stage == 3  # noqa: PLR2004 - the stage's own name

    @property
    def zero_degree(self) -> int:
        """Ranks over which ZeRO partitions the state of what is not a routed expert."""
        return self.dp * self.sp

    @property
    def expert_zero_degree(self) -> int:
        """Ranks over which ZeRO partitions the state of a rank's routed experts."""
        return self.dp * self.sp // self.ep
