"""Ranks and groups: they divide the ranks among them, and cases drawn by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.layout.ranks import (
    Coordinates,
    axis_group,
    coordinates,
    expert_group,
    expert_zero_degree,
    expert_zero_group,
    global_rank,
    partition_index,
    secondary_group,
    zero_group,
)
from planner.spec.layout import Layout

degree = st.sampled_from([1, 2, 3])


@st.composite
def layouts(draw):
    ep = draw(degree)
    return Layout(
        dp=ep * draw(degree),
        tp=draw(degree),
        pp=draw(degree),
        sp=draw(st.sampled_from([1, 2])),
        ep=ep,
    )


grouping = st.sampled_from(["lane", "stage"])


@given(layouts())
def test_coordinates_and_back(layout):
    places = [coordinates(rank, layout) for rank in range(layout.num_devices)]
    assert [global_rank(place, layout) for place in places] == list(range(layout.num_devices))
    assert len(set(places)) == layout.num_devices
    for place in places:
        assert place.pp < layout.pp
        assert place.dp < layout.dp
        assert place.sp < layout.sp
        assert place.tp < layout.tp


@given(layouts(), grouping)
def test_groups_of_a_kind_divide_the_ranks_among_them(layout, grouping):
    kinds = {
        "zero": lambda rank: zero_group(rank, layout),
        "ep": lambda rank: expert_group(rank, layout, grouping),
        "expert_zero": lambda rank: expert_zero_group(rank, layout, grouping),
    } | {
        axis: lambda rank, a=axis: axis_group(rank, a, layout) for axis in ("dp", "sp", "tp", "pp")
    }
    for group_of in kinds.values():
        groups = [group_of(rank) for rank in range(layout.num_devices)]
        assert all(rank in group for rank, group in enumerate(groups))
        assert sorted(rank for group in set(groups) for rank in group) == list(range(len(groups)))


@given(layouts(), grouping)
def test_a_partition_index_is_the_place_in_the_group(layout, grouping):
    for rank in range(layout.num_devices):
        index = partition_index(rank, layout, grouping)
        assert zero_group(rank, layout)[index.dense] == rank
        assert expert_zero_group(rank, layout, grouping)[index.expert] == rank
        assert len(expert_zero_group(rank, layout, grouping)) == expert_zero_degree(
            layout, grouping
        )


@given(layouts(), grouping)
def test_an_expert_group_and_its_state_group_meet_in_one_rank(layout, grouping):
    for rank in range(layout.num_devices):
        ours = set(expert_group(rank, layout, grouping))
        assert ours & set(expert_zero_group(rank, layout, grouping)) == {rank}


def test_the_example_of_deepspeeds_own_docstring():
    """16 ranks, tensor parallel 2, expert parallel 4: groups.py:489."""
    layout = Layout(dp=8, tp=2, ep=4)
    assert zero_group(1, layout) == (1, 3, 5, 7, 9, 11, 13, 15)
    assert expert_group(2, layout, "lane") == (0, 2, 4, 6)
    assert expert_zero_group(2, layout, "lane") == (2, 10)


def test_whole_experts_are_dealt_out_over_tensor_parallel_ranks_too():
    layout = Layout(dp=4, tp=2, ep=4)
    assert expert_group(5, layout, "stage") == (4, 5, 6, 7)
    assert expert_zero_group(5, layout, "stage") == (1, 5)
    assert expert_zero_degree(layout, "stage") == 2
    assert expert_zero_degree(layout, "lane") == 1


def test_stages_are_far_apart_and_tensor_parallel_ranks_side_by_side():
    layout = Layout(dp=2, tp=8, pp=4)
    assert axis_group(3, "pp", layout) == (3, 19, 35, 51)
    assert axis_group(3, "tp", layout) == tuple(range(8))
    assert coordinates(63, layout) == Coordinates(pp=3, dp=1, sp=0, tp=7)


@pytest.mark.parametrize(("rank", "group"), [(0, (0, 1)), (5, (4, 5))])
def test_a_secondary_partition_lies_on_consecutive_ranks(rank, group):
    assert secondary_group(rank, 2) == group
