"""Strides against numpy's, which follows the same rules where no dim has size 1."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from planner.activations.eager.tensor import (
    contiguous_strides,
    is_contiguous,
    is_dense,
    viewed_strides,
)

SHAPES = st.lists(st.integers(2, 4), min_size=1, max_size=4).map(tuple)


def in_elements(array: np.ndarray) -> tuple[int, ...]:
    return tuple(step // array.itemsize for step in array.strides)


@given(shape=SHAPES)
def test_row_major_strides(shape):
    array = np.zeros(shape, dtype=np.int16)
    assert contiguous_strides(shape) == in_elements(array)
    assert is_contiguous(shape, in_elements(array))
    assert is_dense(shape, in_elements(array))


@given(shape=SHAPES, data=st.data())
def test_a_permuted_tensor_is_dense_and_seldom_contiguous(shape, data):
    order = data.draw(st.permutations(range(len(shape))))
    turned = np.zeros(shape, dtype=np.int16).transpose(order)
    assert is_dense(turned.shape, in_elements(turned))
    assert is_contiguous(turned.shape, in_elements(turned)) == turned.flags["C_CONTIGUOUS"]


@given(shape=SHAPES, data=st.data())
def test_a_view_exists_where_numpy_needs_no_copy(shape, data):
    order = data.draw(st.permutations(range(len(shape))))
    turned = np.zeros(shape, dtype=np.int16).transpose(order)
    sizes = list(turned.shape)
    if len(sizes) > 1:
        place = data.draw(st.integers(0, len(sizes) - 2))
        sizes[place : place + 2] = [sizes[place] * sizes[place + 1]]
    strides = viewed_strides(turned.shape, in_elements(turned), tuple(sizes))
    seen = turned.view()
    try:
        seen.shape = tuple(sizes)
    except AttributeError:
        assert strides is None
    else:
        assert strides == in_elements(seen)


def test_a_slice_has_gaps():
    assert not is_dense((2, 3), (4, 1))
    assert not is_contiguous((2, 3), (4, 1))
