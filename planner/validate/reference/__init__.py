"""The planner's own transformer, in plain torch, from the description that plans read.

`build` gives what `planner.validate.train.Trainable` asks for, for any layout of a file with
``training.implementation: reference``. Parameters have the names, the order and the shapes of the
description, cut as `planner.layout.tensor` says. The twin of its operations on the paper machine is
``planner.activations.programs.reference``; who changes one changes the other.

No dropout is applied, whatever the configuration says. With fewer key/value heads than
tensor-parallel ranks, copies of a head are not kept equal: these runs measure memory.
"""

from planner.spec.load import Spec
from planner.validate.train import Trainable


def build(spec: Spec) -> Trainable:
    """What a rank of ``spec`` trains; torch.distributed has been initialised."""
    from planner.validate.reference.training import Reference

    return Reference(spec)
