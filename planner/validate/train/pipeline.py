"""DeepSpeed's pipeline engine, each instruction of its schedule read as a phase."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from planner.layout.schedule import Action
from planner.validate.train import Phase

ACTIONS: dict[str, Action] = {
    "LoadMicroBatch": "load",
    "ForwardPass": "forward",
    "BackwardPass": "backward",
    "SendActivation": "send_activation",
    "RecvActivation": "receive_activation",
    "SendGrad": "send_gradient",
    "RecvGrad": "receive_gradient",
    "ReduceTiedGrads": "reduce_tied",
    "ReduceGrads": "reduce",
    "OptimizerStep": "step",
}
"""The planner's names of the instructions of runtime/pipe/schedule.py."""


def take_step(engine: Any, batches: Iterator[Any], phase: Phase) -> None:
    """One ``train_batch``; ``batches`` gives ``(tokens, labels)`` a micro-step, without end."""
    with _read(phase):
        engine.train_batch(batches)


@contextmanager
def _read(phase: Phase) -> Iterator[None]:
    """Have every instruction that the engine executes read as a phase of its own."""
    from deepspeed.runtime.pipe.engine import PipelineEngine

    methods = dict(PipelineEngine._INSTRUCTION_MAP)
    for kind, method in methods.items():
        PipelineEngine._INSTRUCTION_MAP[kind] = _phased(phase, ACTIONS[kind.__name__], method)
    try:
        yield
    finally:
        PipelineEngine._INSTRUCTION_MAP.update(methods)


def _phased(phase: Phase, name: str, method: Any) -> Any:
    def run(engine: Any, *args: Any, **kwargs: Any) -> None:
        with phase(name):
            method(engine, *args, **kwargs)

    return run
