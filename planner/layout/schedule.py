"""What a pipeline stage does in one step, instruction by instruction: DeepSpeed's 1F1B.

Source: ``TrainSchedule``, deepspeed/runtime/pipe/schedule.py:189 to 298.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import Literal, NamedTuple

Action = Literal[
    "send_gradient",
    "receive_activation",
    "receive_gradient",
    "send_activation",
    "load",
    "forward",
    "backward",
    "reduce_tied",
    "reduce",
    "step",
]


class Instruction(NamedTuple):
    """One thing that the pipeline engine executes."""

    action: Action
    buffer: int = -1
    """The pipeline buffer it works on; -1 for those of the whole step."""
    micro_batch: int = -1


_LAST = (Instruction("reduce_tied"), Instruction("reduce"), Instruction("step"))


def num_pipe_buffers(stage: int, num_stages: int, micro_batches: int) -> int:
    """Slots for micro-batches that wait for their backward pass; at least 2 (schedule.py:247)."""
    return max(2, in_flight(stage, num_stages, micro_batches))


def in_flight(stage: int, num_stages: int, micro_batches: int) -> int:
    """Most micro-batches whose forward pass is done, or under way, and whose backward is not."""
    return min(num_stages - stage, micro_batches)


def steps(stage: int, num_stages: int, micro_batches: int) -> Iterator[tuple[Instruction, ...]]:
    """The instructions of one stage, in the groups between which stages could wait for each other.

    At time t stage s runs a forward pass if t - s is even, of micro-batch (t - s) / 2, else the
    backward pass of micro-batch (t + s + 1) / 2 - p; micro-batches out of range are idle time.
    """
    total = 2 * (micro_batches + num_stages - 1)
    buffers = num_pipe_buffers(stage, num_stages, micro_batches)
    for time in range(total):
        is_forward = (time - stage) % 2 == 0
        now = (time - stage) // 2 if is_forward else (time + stage + 1) // 2 - num_stages
        # The step before was of the other kind; what it computed is sent now.
        before = (time + stage) // 2 - num_stages if is_forward else (time - 1 - stage) // 2
        exchange = _exchange(stage, num_stages, is_forward=is_forward)
        work = [(action, now if action.startswith("receive") else before) for action in exchange]
        work += [(action, now) for action in _compute(stage, num_stages, is_forward=is_forward)]
        yield tuple(
            Instruction(action, index % buffers, index)
            for action, index in work
            if 0 <= index < micro_batches
        ) + (_LAST if time == total - 1 else ())


@lru_cache(maxsize=1024)
def instructions(stage: int, num_stages: int, micro_batches: int) -> tuple[Instruction, ...]:
    """The same, one after the other."""
    return tuple(chain.from_iterable(steps(stage, num_stages, micro_batches)))


def sufficient_micro_batches(stage: int, num_stages: int, micro_batches: int) -> int:
    """So many micro-batches reach every state that more of them would reach.

    With b buffers the first b micro-batches fill the buffers; from then on a stage repeats one
    forward and one backward pass, and each buffer gets a micro-batch equal to the one it held. So
    the state between two repetitions is always the same, and b + 2 micro-batches show it: one
    that ends the filling, one that repeats, and the emptying, which does not depend on how many
    came before.
    """
    buffers = max(2, num_stages - stage)
    return min(micro_batches, buffers + 2)


def _exchange(stage: int, num_stages: int, *, is_forward: bool) -> tuple[Action, ...]:
    """What is sent and received before a pass, in order."""
    if is_forward:
        return ("send_gradient", "receive_activation") if stage > 0 else ()
    return ("receive_gradient", "send_activation") if stage < num_stages - 1 else ()


def _compute(stage: int, num_stages: int, *, is_forward: bool) -> tuple[Action, ...]:
    """The pass itself; the end stages load inputs or labels for the forward pass."""
    if not is_forward:
        return ("backward",)
    return ("load", "forward") if stage in {0, num_stages - 1} else ("forward",)
