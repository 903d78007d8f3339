"""Sizes in and out."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.units import GIB, UNITS, ceil_div, parse_bytes, round_up, show_gib


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("1KiB", 1024),
        ("1KB", 1000),
        ("80GiB", 85_899_345_920),
        ("80GB", 80_000_000_000),
        ("79.1 GiB", 84_932_978_278),
        ("1.5TB", 1_500_000_000_000),
        (" 2TiB ", 2_199_023_255_552),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    [80, 80.5, None, True, "80", "80Gb", "80 gib", "-1GiB", "1e3GiB", "GiB", "", "1GiB2GiB"],
    ids=repr,
)
def test_what_is_no_size_is_told_how_to_be_one(text):
    with pytest.raises(ValueError, match=r"is not a size with a unit; write e\.g\. '80GiB'"):
        parse_bytes(text)


@given(st.integers(0, 10**9), st.integers(0, 10**6 - 1), st.sampled_from(sorted(UNITS)))
def test_fractions_are_exact_to_the_nearest_byte(whole, millionths, unit):
    exact = (whole + Decimal(millionths) / 10**6) * UNITS[unit]
    assert abs(parse_bytes(f"{whole}.{millionths:06}{unit}") - exact) <= Decimal("0.5")


@given(st.integers(0, 10**13))
def test_what_is_shown_is_within_rounding_of_what_it_is(size):
    assert abs(parse_bytes(show_gib(size, digits=3) + "GiB") - size) <= GIB / 2000 + 1


@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6))
def test_rounding_up_is_the_next_multiple(value, multiple):
    up = round_up(value, multiple)
    assert up % multiple == 0
    assert 0 <= up - value < multiple
    assert up == ceil_div(value, multiple) * multiple
