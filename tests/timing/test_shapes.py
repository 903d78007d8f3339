from dataclasses import fields

import numpy as np
import pytest

from planner.timing.breakdown import StepTime
from planner.timing.shapes import Shapes


def test_plain_numbers_are_one_layout_and_arrays_are_many():
    assert len(Shapes(dp=8)) == 1
    assert len(Shapes(dp=np.array([8, 4, 2]), tp=np.array([1, 2, 4]), pp=2)) == 3


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(AssertionError):
        Shapes(dp=np.array([8, 4]), tp=np.array([1, 2, 4]))


def test_the_seconds_add_up_and_flops_are_none_of_them():
    parts = {each.name: np.array([1.0, 2.0]) for each in fields(StepTime)}
    time = StepTime(**parts)
    assert np.array_equal(time.seconds, [14.0, 28.0])
    assert np.array_equal(time.hardware_flops_per_second, [1 / 14, 1 / 14])
