"""A file, a launcher that has processes of paper, and what is made of the two."""

from pathlib import Path

import pytest

from planner.report.plan import document as describe
from planner.spec.load import load
from planner.validate.job import Failure, Note, RankResult, Reading
from planner.validate.record import is_finished
from planner.validate.validate import document, read_validation, self_contained, validate

CONFIGS = Path(__file__).parents[2] / "cluster_configs"


class Paper:
    """Gives what it was made with."""

    def __init__(self, *results):
        self.results = results

    def run(self, _job, *, progress):
        progress(None, Note("on paper"))
        for result in self.results:
            for reading in result.readings:
                progress(result.rank, reading)
        return self.results


@pytest.fixture
def run(tmp_path):
    spec = load(CONFIGS / "this-machine-cpu.yaml")

    def made(*results):
        return validate(
            spec,
            Paper(*results),
            run=tmp_path / "run",
            steps=1,
            describe=describe,
            progress=lambda *_: None,
        )

    return made


def reading(peak):
    return Reading(step=-1, phase="init", start_bytes=0, end_bytes=peak, peak_bytes=peak)


def test_what_is_far_off_differs_and_is_recorded(run, tmp_path):
    made = run(*(RankResult(rank=rank, outcome="done", readings=(reading(7),)) for rank in (0, 1)))
    assert (made.predicted, made.measured, made.agrees) == ("ran", "ran", False)
    assert len(made.differing) == len(made.points) == 4
    assert document(made)["verdict"]["num_differing"] == 4
    assert is_finished(tmp_path / "run")
    again = read_validation(tmp_path / "run")
    assert again.points == made.points
    assert [each.rank for each in again.results] == [0, 1]


def test_a_run_that_ended_early_is_a_failure_with_its_cause(run):
    failure = Failure(kind="killed", message="by a signal", log="rank1.log")
    made = run(
        RankResult(rank=0, outcome="done"),
        RankResult(rank=1, outcome="lost", failure=failure),
    )
    assert made.measured == "failed"
    assert not made.agrees
    assert [each["log"] for each in document(made)["failures"]] == ["rank1.log"]


def test_out_of_memory_is_a_result_beside_a_plan_that_fits(run):
    failure = Failure(kind="OutOfMemoryError", message="full", wanted_bytes=1)
    made = run(RankResult(rank=0, outcome="out_of_memory", failure=failure))
    assert (made.predicted, made.measured, made.agrees) == ("ran", "out_of_memory", False)


def test_a_model_in_a_file_of_its_own_travels_with_the_job(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 256}'
    )
    path = tmp_path / "file.yaml"
    path.write_text(
        "model: config.json\n"
        "cluster: {nodes: 1, devices_per_node: 1, device: cpu}\n"
        "training: {sequence_length: 32}\n"
        "layout: {zero_stage: 0}\n"
    )
    assert self_contained(load(path)).model["n_embd"] == 64
    named = load(CONFIGS / "llama-3-8b-8xh100.yaml")
    assert self_contained(named) is named
