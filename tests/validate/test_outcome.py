"""Who is to blame: one cause, whatever its peers saw of it."""

from planner.validate.job import Failure, RankResult, Reading
from planner.validate.launch.outcome import lost, root_failure, settle

READING = Reading(step=0, phase="forward", start_bytes=0, end_bytes=1, peak_bytes=2)


def done(rank):
    return RankResult(rank=rank, outcome="done", readings=(READING,))


def failed(rank, outcome="error"):
    return RankResult(rank=rank, outcome=outcome, failure=Failure(kind="E", message="m"))


def kinds(results):
    return [result.failure and result.failure.kind for result in results]


def test_all_well():
    results = settle(
        {0: [READING], 1: [READING]}, {1: done(1), 0: done(0)}, silence_seconds=None, logs={}
    )
    assert [result.rank for result in results] == [0, 1]
    assert root_failure(results) is None


def test_a_lost_process_explains_an_error_that_was_heard_before():
    ended = {0: failed(0), 1: lost(1, "killed", "died", [READING], "log-1")}
    results = settle({0: [], 1: [READING]}, ended, silence_seconds=None, logs={})
    assert root_failure(results).rank == 1
    assert kinds(results) == ["interrupted", "killed"]
    assert results[0].failure.message == "after rank 1 failed: E: m"
    assert (results[1].failure.step, results[1].failure.phase) == (0, "forward")


def test_out_of_memory_stays_a_result_on_every_rank_that_had_it():
    ended = {1: failed(1, "out_of_memory"), 0: failed(0, "out_of_memory"), 2: failed(2)}
    results = settle({0: [], 1: [], 2: []}, ended, silence_seconds=None, logs={})
    assert [result.outcome for result in results] == ["out_of_memory", "out_of_memory", "lost"]


def test_of_two_errors_the_first_is_the_cause():
    results = settle({0: [], 1: []}, {1: failed(1), 0: failed(0)}, silence_seconds=None, logs={})
    assert root_failure(results).rank == 1
    assert kinds(results) == ["interrupted", "E"]


def test_silence_is_blamed_on_who_came_least_far():
    told = {0: [READING] * 2, 1: [READING], 2: [READING] * 3}
    results = settle(told, {2: done(2)}, silence_seconds=9.0, logs={1: "log-1"})
    assert kinds(results) == ["interrupted", "hung", None]
    assert results[1].failure.log == "log-1"
    assert results[1].failure.message == "no news for 9 s; rank 1 came least far"


def test_who_still_waits_when_another_failed_was_interrupted():
    results = settle({0: [READING], 1: []}, {1: failed(1)}, silence_seconds=None, logs={})
    assert kinds(results) == ["interrupted", "E"]
    assert results[0].readings == (READING,)
