"""The plain training loop around DeepSpeed's engine."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from planner.validate.train import Phase


@dataclass(slots=True, kw_only=True)
class Loop:
    """A loop whose variables hold batch and output until they get new ones, over steps too."""

    micro_steps: int
    keep_output: bool
    """Else the output goes as soon as the loss has been taken from it."""
    make_batch: Callable[[], dict[str, Any]]
    _held: dict[str, Any] = field(default_factory=dict)

    def take_step(self, engine: Any, phase: Phase) -> None:
        """Forward and backward passes, then the optimizer's step.

        ``engine.step()`` of every other micro-step only counts, so it belongs to its backward.
        """
        held = self._held
        for micro_step in range(self.micro_steps):
            with phase("forward"):
                held["batch"] = self.make_batch()
                held["output"] = engine(**held["batch"])
                held["loss"] = held["output"].loss
                if not self.keep_output:
                    del held["output"]
            with phase("backward"):
                engine.backward(held["loss"])
                if micro_step < self.micro_steps - 1:
                    engine.step()
        with phase("step"):
            engine.step()
