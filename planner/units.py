"""Sizes: bytes inside, a number with its unit outside."""

import re

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": TIB,
}

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?([KMGT]i?B|B)")


def parse_bytes(text: object) -> int:
    """Read ``80GiB`` or ``1.5 TB`` as bytes, rounded to the nearest.

    ValueError says how to write it. There is no default unit: a bare ``80`` is refused.
    """
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(
            f"{text!r} is not a size with a unit; write e.g. '80GiB' (units: {', '.join(UNITS)})"
        )
    number, unit = match.groups()
    whole, _, fraction = number.partition(".")
    scale = int(10 ** len(fraction))
    return (int(whole + fraction) * UNITS[unit] + scale // 2) // scale


def show_gib(size: int, digits: int = 2) -> str:
    """``1610612736`` -> ``1.50``: GiB as people read it; the label stands in the heading."""
    return f"{size / GIB:.{digits}f}"


def ceil_div(dividend: int, divisor: int) -> int:
    """Quotient rounded up."""
    return -(-dividend // divisor)


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of ``multiple`` that is not below ``value``."""
    return ceil_div(value, multiple) * multiple
