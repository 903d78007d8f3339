"""Which ranks of a layout are rehearsed."""

import pytest

from planner.errors import LayoutError
from planner.plan import make_plan
from planner.spec.load import load

pytest.importorskip("torch")

from planner.rehearse.run import choose_ranks, shortened


@pytest.fixture(scope="module")
def plan():
    return make_plan(load("cluster_configs/qwen2-72b-64xh100.yaml"), every_rank=True)


def test_ranks_by_name(plan):
    first, last = choose_ranks(plan, "ends")
    assert (first, last // 16) == (0, 3), "16 ranks a stage"
    assert choose_ranks(plan, "worst") == (plan.worst.rank,)
    assert len(choose_ranks(plan, "all")) == len(plan.ranks)


def test_ranks_by_number(plan):
    assert choose_ranks(plan, "0, 17,63") == (0, 17, 63)


@pytest.mark.parametrize("which", ["64", "-1", "", "first", "1;2"])
def test_no_such_rank(plan, which):
    with pytest.raises(LayoutError, match="worst, ends, all"):
        choose_ranks(plan, which)


def test_a_shorter_step_holds_as_much(plan):
    """256 micro-steps tell no more than six do, on any stage and in any phase."""
    short = shortened(plan.spec)
    assert (plan.spec.micro_steps, short.micro_steps) == (256, 6)
    peaks = [
        [(phase.phase, phase.peak_bytes, phase.end_bytes) for phase in rank.phases]
        for made in (plan, make_plan(short, every_rank=True))
        for rank in made.ranks
    ]
    assert peaks[: len(plan.ranks)] == peaks[len(plan.ranks) :]
