"""What an optimizer keeps per tensor, and what one of its steps allocates on top.

The tensors are fp32: ZeRO's flat partitions, flat groups, or the parameters of an fp32 model.
"""

from collections.abc import Sequence

from planner.spec.training import Training

EIGHT_BIT_MINIMUM = 4096
"""Smaller tensors keep fp32 moments (bitsandbytes optim/optimizer.py, ``min_8bit_size``)."""

EIGHT_BIT_BLOCK = 256
"""Elements that share one scale (bitsandbytes optim/optimizer.py, ``blocksize``)."""

EIGHT_BIT = {"adamw_8bit", "paged_adamw_8bit"}

PAGED_MINIMUM = 100_000
"""Smaller tensors keep moments on the device (bitsandbytes 0.50.2, optim/optimizer.py:383)."""

PAGED = {"paged_adamw", "paged_adamw_8bit"}
"""Optimizers of bitsandbytes whose moments are managed memory, which PyTorch does not count."""

ADAMS = {"adamw", "muon"}
"""Optimizers that run Adam on a tensor that is no matrix."""


def state_bytes(
    training: Training, numel: int, *, on_host: bool = False, element_bytes: int = 4
) -> int:
    """Bytes that the optimizer keeps for one tensor from its first step on.

    ``element_bytes``: of the tensor, whose dtype torch's own moments have; bitsandbytes' have not.
    ``on_host``: DeepSpeed's kernels for the host run. Its Lion has a second moment there, which
    nobody reads (ops/lion/cpu_lion.py:124).

    adamw: two moments (torch/optim/adam.py:178-184; DeepSpeed ops/adam/fused_adam.py:155-157).
    sgd: a momentum buffer if momentum is not 0 (torch/optim/sgd.py). lion: one moment
    (DeepSpeed ops/lion/fused_lion.py). adamw_8bit: two moments of a byte with an fp32 scale a
    block; fp32 below `EIGHT_BIT_MINIMUM` elements; seen in bitsandbytes 0.50.2 under DeepSpeed on
    the CPU, where a step allocates nothing else. Left out: two maps of 1 KiB that tensors share.
    muon: of what is no matrix, Adam's (runtime/engine.py:2530-2541); `muon` has the matrices.
    """
    if training.optimizer in PAGED and numel >= PAGED_MINIMUM:
        return 0
    if training.optimizer in EIGHT_BIT | PAGED:
        return bitsandbytes_bytes(training, numel)
    if training.optimizer in ADAMS:
        return 2 * element_bytes * numel
    if training.optimizer == "lion" and on_host:
        return 2 * element_bytes * numel
    if training.optimizer == "sgd" and not training.momentum:
        return 0
    return element_bytes * numel


def paged_bytes(training: Training, numel: int) -> int:
    """Moments of one tensor in managed memory: on the device while there is room, else the host.

    Source: bitsandbytes 0.50.2, optim/optimizer.py, ``get_state_buffer``, and ``get_paged``.
    """
    if training.optimizer not in PAGED or numel < PAGED_MINIMUM:
        return 0
    return bitsandbytes_bytes(training, numel)


def bitsandbytes_bytes(training: Training, numel: int) -> int:
    """Two moments: bytes with an fp32 scale a block, or fp32 ones of what is small or not 8-bit."""
    if training.optimizer not in EIGHT_BIT or numel < EIGHT_BIT_MINIMUM:
        return 8 * numel
    return 2 * (numel + 4 * -(-numel // EIGHT_BIT_BLOCK))


def temporary_bytes(training: Training, numels: Sequence[int]) -> int:
    """Highest point of what one step over these fp32 tensors allocates and frees again.

    foreach: the square roots of all second moments at once (torch/optim/adam.py:787). loop: root
    and quotient of one tensor, beside the previous tensor's quotient, which its variable still
    holds (torch/optim/adam.py:528-534). Fused kernels, SGD and Lion work in place.
    """
    if training.optimizer not in ADAMS or training.optimizer_kernel == "fused":
        return 0
    if training.optimizer_kernel == "foreach":
        return 4 * sum(numels)
    before = [0, *numels[:-1]]
    return max((4 * old + 8 * new for old, new in zip(before, numels, strict=True)), default=0)
