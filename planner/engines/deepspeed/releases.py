"""What differs between DeepSpeed's releases, as named predicates."""

from planner.engines.deepspeed.strategy import Setup

Release = tuple[int, ...]


def release(version: str) -> Release:
    """``0.19.8`` -> ``(0, 19, 8)``."""
    return tuple(int(part) for part in version.split("."))


def overflow_check_bytes(setup: Setup) -> int:
    """Bytes per element of the overflow check's temporaries on one tensor.

    Up to 0.19.5 an fp32 copy (4), isnan, isinf and their union (3) and an fp32 cast (4); since
    0.19.6 two scalars (runtime/utils.py:205-228).
    """
    if release(setup.deepspeed.version) >= (0, 19, 6) or not checks_overflow(setup):
        return 0
    return 11


def offload_check_bytes(setup: Setup) -> int:
    """The same under offload, where every release checks every gradient (stage_1_and_2.py:1791)."""
    return 0 if release(setup.deepspeed.version) >= (0, 19, 6) else 11


def checks_overflow(setup: Setup) -> bool:
    """Whether ZeRO-1 and ZeRO-2 look for infinities at the start of a step.

    fp16 always; bf16 by ``check_grad_overflow``, whose default is True since 0.19.3
    (runtime/precision_config.py:56).
    """
    if setup.training.precision != "bf16":
        return setup.training.precision == "fp16"
    chosen = setup.deepspeed.check_grad_overflow
    return release(setup.deepspeed.version) >= (0, 19, 3) if chosen is None else chosen
