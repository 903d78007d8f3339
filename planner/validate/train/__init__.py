"""What a rank trains, and the seam between the loop that measures and the models.

The worker reads the phase ``init`` around `Trainable.initialise`, then calls `Trainable.step` once
an optimizer step. Whoever builds a model needs only that; the loops of both engines are in
`loop` and `pipeline`, the optimizers in `optimizer`, the configuration in `settings`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

Phase = Callable[[str], AbstractContextManager[None]]
"""``with phase("forward"): ...`` reads what happens inside; names as in `job.Reading.phase`."""


class Trainable(Protocol):
    """A model with its optimizer and DeepSpeed's engine, one rank's share of it.

    ``planner.validate.reference.build(spec)`` returns one, as `huggingface.HuggingFace` is.
    torch.distributed has been initialised; nothing has been allocated before `initialise`.
    """

    def initialise(self) -> Any:
        """Make model and optimizer, call ``deepspeed.initialize``, and return the engine.

        Only the engine refers to the model and the optimizer afterwards.
        """

    def step(self, engine: Any, phase: Phase) -> None:
        """Take one optimizer step: all its micro-steps, each phase of them read on its own.

        What a training loop's variables hold from one step to the next (the batch, the output)
        is held by the object.
        """
