"""The picture of a rehearsal, from what it would give PyTorch's viewer."""

import pytest

from planner.errors import PlannerError
from planner.rehearse.replay import Modelled
from planner.rehearse.snapshot import snapshot
from planner.report.timeline import save, series
from planner.units import MIB
from tests.rehearse.test_replay import make, recorded


@pytest.fixture
def told():
    books, trace, _ = recorded()
    with books.phase("forward"):
        weights = make(books, 1, 30 * MIB, "weights")
        make(books, 2, 40 * MIB, "activations")
    with books.phase("step"):
        books.strike(1, weights)
        make(books, 3, 12 * MIB, "step_copies")
    return snapshot(trace, Modelled())


def test_every_event_adds_up(told):
    drawn = series(told)
    # Two segments with a tensor each, a free in two events, a tensor in what was freed.
    assert drawn.allocated == {
        "activations": tuple(MIB * size for size in (0, 0, 0, 40, 40, 40, 40)),
        "weights": tuple(MIB * size for size in (0, 30, 30, 30, 0, 0, 0)),
        "step_copies": tuple(MIB * size for size in (0, 0, 0, 0, 0, 0, 12)),
    }
    assert drawn.reserved == tuple(MIB * size for size in (30, 30, 70, 70, 70, 70, 70))
    assert drawn.phases == ((0, "forward"), (4, "step"))


def test_of_neighbours_the_highest_is_kept(told):
    drawn = series(told, most=2)
    assert [sum(sizes) for sizes in zip(*drawn.allocated.values(), strict=True)] == [
        70 * MIB,
        52 * MIB,
    ]
    assert drawn.phases == ((0, "forward"), (1, "step"))


def test_pictures(told, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "a.png"):
        save(series(told), tmp_path / name, title="a rank", capacity_bytes=100 * MIB)
        assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(PlannerError, match=r"write e\.g\. a\.svg"):
        save(series(told), tmp_path / "a.xyz", title="a rank", capacity_bytes=None)
