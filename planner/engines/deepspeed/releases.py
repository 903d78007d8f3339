"""What differs between DeepSpeed's releases, as named predicates.

Line numbers are of DeepSpeed 0.19.8; the releases at which something changed were found by
comparing the published source archives, those marked [run] by running the releases too.
"""

from planner.engines.deepspeed.strategy import Setup

Release = tuple[int, ...]

ELEMENTWISE_CHECK_BYTES = 11
"""An fp32 copy (4), isnan, isinf and their union (3), and that in fp32 again (4)."""


def release(version: str) -> Release:
    """``0.19.8`` -> ``(0, 19, 8)``."""
    return tuple(int(part) for part in version.split("."))


def flattens_on_device(version: str) -> bool:
    """ZeRO-1 and ZeRO-2 flatten on the device if the copy fits (zero/stage_1_and_2.py:453).

    Before 0.18.7 parameters always went to the host to be flattened.
    """
    return release(version) >= (0, 18, 7)


def keeps_fp32_partition(version: str) -> bool:
    """``grad_accum_dtype: fp32`` makes ZeRO-2 keep an fp32 partition (stage_1_and_2.py:1259-1265).

    Before 0.19.8 it kept the gradients in the model's dtype all the same.
    """
    return release(version) >= (0, 19, 8)


def clones_oversized_gradients(version: str) -> bool:
    """Under offload a gradient beyond the bucket is cloned (stage_1_and_2.py:1446)."""
    return release(version) >= (0, 19, 8)


def accumulates_bf16_in_fp32(version: str) -> bool:
    """bf16 without ZeRO accumulates in fp32 by default, in BF16_Optimizer (up to 0.17.5).

    Since 0.17.6 the dtype is the model's (runtime/engine.py:1806-1807).
    """
    return release(version) < (0, 17, 6)


def leaves_bf16_gradients(version: str) -> bool:
    """bf16 gradients without ZeRO are zeroed, not freed (up to 0.18.5) [run].

    The engine did not call ``zero_grad`` (runtime/engine.py:2299-2304 of 0.16.9); it does now
    (3523-3528).
    """
    return release(version) < (0, 18, 6)


def gathers_one_in_one_buffer(version: str) -> bool:
    """A parameter gathered on its own stays in the buffer of the gathering [run].

    Source: zero/partition_parameters.py:2132-2158. Up to 0.18.4 it was copied out of it (1902 and
    1952 of 0.16.9).
    """
    return release(version) >= (0, 18, 5)


def releases_leftovers(version: str) -> bool:
    """What a backward pass never left is released at its end (stage3.py:3059-3068) [run].

    Before, an embedding stayed whole until the step, or the next forward pass used it.
    """
    return release(version) >= (0, 19, 3)


def routes_densely(version: str) -> bool:
    """DeepSpeed's MoE layer routes with tensors of tokens x experts x capacity (up to 0.19.3)."""
    return release(version) < (0, 19, 4)


def pins_by_default(version: str) -> bool:
    """``pin_memory`` of offload defaults to True (zero/offload_config.py:45 and 75)."""
    return release(version) >= (0, 19, 5)


def checks_overflow(setup: Setup) -> bool:
    """Whether ZeRO-1 and ZeRO-2 look for infinities at the start of a step.

    fp16 always, fp32 never; bf16 never up to 0.17.0, then by ``check_grad_overflow``, whose default
    is True since 0.19.3 (runtime/precision_config.py:56) [run].
    """
    if setup.training.precision != "bf16":
        return setup.training.precision == "fp16"
    if release(setup.deepspeed.version) < (0, 17, 1):
        return False
    chosen = setup.deepspeed.check_grad_overflow
    return release(setup.deepspeed.version) >= (0, 19, 3) if chosen is None else chosen


def checks_elementwise(version: str) -> bool:
    """The check makes copies; since 0.19.6 two scalars suffice (runtime/utils.py:205-228) [run]."""
    return release(version) < (0, 19, 6)


def overflow_check_bytes(setup: Setup) -> int:
    """Bytes per element of the overflow check's temporaries on one tensor, in the step."""
    checked = checks_overflow(setup) and checks_elementwise(setup.deepspeed.version)
    return ELEMENTWISE_CHECK_BYTES if checked else 0


def offload_check_bytes(setup: Setup) -> int:
    """The same under offload, where all gradients are checked (stage_1_and_2.py:1791)."""
    return ELEMENTWISE_CHECK_BYTES if checks_elementwise(setup.deepspeed.version) else 0
