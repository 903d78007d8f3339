import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.engines.deepspeed.communicators import num_all_to_all_peers, num_communicators
from planner.spec.layout import Layout

COUNTED = [  # groups of more than one rank, counted in runs of DeepSpeed 0.19.8 on four CPU ranks
    pytest.param(Layout(dp=4, zero_stage=1), 2, id="zero-1"),
    pytest.param(Layout(dp=4, zero_stage=3), 2, id="zero-3"),
    pytest.param(Layout(dp=2, pp=2, zero_stage=1), 5, id="pipeline"),
    pytest.param(Layout(dp=4, ep=2, zero_stage=1), 4, id="experts"),
    pytest.param(Layout(dp=1), 0, id="alone"),
]

DEGREES = st.sampled_from([1, 2, 4, 8])
LAYOUTS = st.builds(Layout, dp=DEGREES, tp=DEGREES, pp=DEGREES, sp=DEGREES)


@pytest.mark.parametrize(("layout", "expected"), COUNTED)
def test_as_many_as_a_real_run_makes(layout: Layout, expected: int) -> None:
    assert num_communicators(layout) == expected


@given(layout=LAYOUTS)
def test_a_rank_alone_needs_none_and_any_other_the_default_group(layout: Layout) -> None:
    assert (num_communicators(layout) == 0) == (layout.num_devices == 1)


@given(dp=DEGREES, axis=st.sampled_from(["tp", "pp", "sp"]), degree=st.sampled_from([2, 4, 8]))
def test_another_axis_never_needs_fewer(dp: int, axis: str, degree: int) -> None:
    assert num_communicators(Layout(dp=dp, **{axis: degree})) >= num_communicators(Layout(dp=dp))


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (Layout(dp=128, pp=16, ep=64), 7),
        (Layout(dp=16, ep=8), 7),
        (Layout(dp=16, ep=4), 3),
        (Layout(dp=8, tp=4, ep=8), 1),
        (Layout(dp=2, sp=4), 3),
        (Layout(dp=64), 0),
        (Layout(dp=8, tp=8), 0),
    ],
)
def test_peers_are_those_of_the_node(layout: Layout, expected: int) -> None:
    assert num_all_to_all_peers(layout, devices_per_node=8) == expected
