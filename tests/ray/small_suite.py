"""A suite of three cases that take a second: ``python -m tests.ray.small_suite``, in its folder."""

import sys
import time
from functools import partial
from pathlib import Path

import yaml

from planner.validate import worker
from planner.validate.job import RankResult
from planner.validate.suite.case import Case
from planner.validate.suite.command import Suite, main


def a_second(_job, place, _tell):
    time.sleep(1)
    return RankResult(rank=place.rank, outcome="done")


if __name__ == "__main__":
    worker.run_rank = a_second
    document = yaml.safe_load(Path("small.yaml").read_text(encoding="utf-8"))
    cases = [Case(name=f"small/{number}", document=document) for number in range(3)]
    suite = Suite(folder=Path.cwd(), cases=cases, causes={})
    sys.exit(main(suite, say=partial(print, flush=True)))
