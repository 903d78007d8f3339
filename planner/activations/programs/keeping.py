"""When DeepSpeed's own checkpoint function runs, and how it is told to keep what it is given."""

from planner.activations.eager import Backend
from planner.activations.programs.reentrant import Keeping
from planner.spec.deepspeed import DeepSpeed
from planner.spec.layout import Layout
from planner.spec.training import Training


def checkpoints_by_function(training: Training, layout: Layout) -> bool:
    """Blocks are checkpoints of ``deepspeed.checkpointing``, or of Megatron's equal function.

    A `PipelineModule` takes it by default (runtime/pipe/module.py:135), Megatron-DeepSpeed where
    it is told to; transformers takes torch's and reads none of DeepSpeed's keys.
    """
    if training.recompute != "full":
        return False
    return layout.pp > 1 or training.implementation == "megatron"


def reenters(layout: Layout, deepspeed: DeepSpeed) -> bool:
    """That function is an autograd function, which a pipeline may be told not to take.

    Source: runtime/pipe/engine.py:210-213 of DeepSpeed 0.19.8.
    """
    return layout.pp == 1 or deepspeed.pipeline.use_reentrant is not False


def keeping(layout: Layout, deepspeed: DeepSpeed, backend: Backend) -> Keeping:
    """What ``activation_checkpointing`` makes of a checkpoint's input.

    Without partitions ``cpu_checkpointing`` takes another way, which `engines` books: it depends
    on the checkpoints before. A CPU rank's copies stay where they are, since ``.cpu()`` copies
    nothing there. Source: runtime/activation_checkpointing/checkpointing.py:370-430 of DeepSpeed
    0.19.8.
    """
    keys = deepspeed.activation_checkpointing
    if not keys.partition_activations:
        return Keeping()
    return Keeping(parts=layout.tp, on_host=keys.cpu_checkpointing and backend == "cuda")
