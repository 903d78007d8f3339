"""What a submitted job prints is put together again, however it was cut into pieces."""

import io
import json

import pytest

from planner.validate.job import Job, Note, RankResult, Reading, as_message
from planner.validate.launch.submit import _Heard
from planner.validate.launch.submitted import PREFIX, Task, read_task

READING = Reading(step=0, phase="forward", start_bytes=0, end_bytes=1, peak_bytes=2)
RESULT = RankResult(rank=1, outcome="done", readings=(READING,))
TOLD = [(None, Note("starting")), (1, READING), (1, RESULT)]
PRINTED = "a warning\n" + "".join(
    f"{PREFIX}{json.dumps({'rank': rank} | as_message(each))}\n" for rank, each in TOLD
)


@pytest.mark.parametrize("size", [1, 7, 100, len(PRINTED)])
def test_lines_arrive_whole(size):
    told, log = [], io.StringIO()
    heard = _Heard(lambda rank, each: told.append((rank, each)), log)
    for start in range(0, len(PRINTED), size):
        heard.hear(PRINTED[start : start + size])
    assert told == TOLD[:2]
    assert heard.results == {1: RESULT}
    assert log.getvalue() == "a warning\n"
    assert not heard.refused


def test_a_refusal_is_heard():
    heard = _Heard(print, io.StringIO())
    heard.hear(f'{PREFIX}{{"refused": "no room"}}\n')
    assert heard.refused == "no room"


def test_a_task_comes_back_as_it_was(tmp_path):
    job = Job(spec="model: x", folder=".", num_ranks=2)
    task = Task(job=job, run_rank="module:function", group_size=2, silence_seconds=9.0)
    task.write(tmp_path)
    assert read_task(tmp_path) == task
