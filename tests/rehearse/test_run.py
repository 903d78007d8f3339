"""Which ranks of a layout are rehearsed."""

import pytest

from planner.errors import LayoutError
from planner.plan import make_plan
from planner.spec.load import load

pytest.importorskip("torch")

from planner.rehearse.run import choose_ranks


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
