"""Many layouts: each once, whole or not at all, and none stops the others."""

from dataclasses import replace

import pytest

from planner.errors import LaunchError
from planner.plan import make_plan
from planner.spec.load import load
from planner.validate.job import RankResult, Reading

pytest.importorskip("torch")

from planner.rehearse.many import Store, rehearse_many, telling
from planner.rehearse.run import Rehearsal

SPEC = load("cluster_configs/llama-3-8b-8xh100.yaml")
SPECS = [
    (f"{tokens}", replace(SPEC, training=replace(SPEC.training, sequence_length=tokens)))
    for tokens in (512, 1024, 2048)
]


class Stub:
    """Instead of an engine: remembers whom it was asked for."""

    def __init__(self, refused=()):
        self.asked, self.refused = [], refused

    def __call__(self, name, spec):
        self.asked.append(name)
        if name in self.refused:
            raise LaunchError(f"{name}: no")
        reading = Reading(step=-1, phase="init", start_bytes=0, end_bytes=1, peak_bytes=2)
        result = RankResult(rank=0, outcome="done", readings=(reading,))
        plan = make_plan(spec, booked=True)
        return Rehearsal(plan=plan, results=(result,), points=(), reserved=(), seconds=1.0)


def run(store, stub, specs=SPECS):
    return {
        record["name"]: record
        for record in rehearse_many(specs, "worst", store=store, jobs=2, one=stub)
    }


def test_what_is_done_is_not_done_again(tmp_path):
    store, first, second = Store(tmp_path / "out.jsonl"), Stub(), Stub()
    run(store, first, SPECS[:2])
    records = run(store, second)
    assert sorted(first.asked) == ["1024", "512"]
    assert second.asked == ["2048"]
    assert set(records) == {"512", "1024", "2048"}
    assert records["512"]["ranks"][0]["readings"][0]["peak_bytes"] == 2


def test_a_line_that_was_cut_off_is_done_again(tmp_path):
    store = Store(tmp_path / "out.jsonl")
    run(store, Stub())
    content = store.path.read_bytes()
    store.path.write_bytes(content[:-10])
    again = Stub()
    run(store, again)
    assert len(again.asked) == 1
    assert len(store.read()) == 3
    assert store.path.read_bytes().count(b"\n") == 3


def test_one_that_cannot_run_is_told_and_the_others_go_on(tmp_path):
    records = run(Store(tmp_path / "out.jsonl"), Stub(refused=("1024",)))
    assert records["1024"]["error"] == "1024: no"
    assert records["512"]["document"]["failures"] == []


def test_another_file_is_another_key(tmp_path):
    store = Store(tmp_path / "out.jsonl")
    run(store, Stub())
    longer = replace(SPEC, training=replace(SPEC.training, sequence_length=4096))
    stub = Stub()
    run(store, stub, [("512", longer)])
    assert stub.asked == ["512"]


def test_of_each_phase_the_highest_and_the_last_reading_are_kept():
    def reading(step, phase, peak):
        return Reading(step=step, phase=phase, start_bytes=0, end_bytes=peak, peak_bytes=peak)

    readings = [reading(0, "forward", peak) for peak in (3, 9, 5, 4)]
    middle, last = reading(1, "forward", 7), reading(2, "forward", 8)
    result = RankResult(rank=0, outcome="done", readings=(*readings, middle, last))
    assert telling(result).readings == (readings[1], readings[3], last)
