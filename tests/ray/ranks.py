"""Rank functions that do what a test wants, instead of training."""

import os
import signal
import time
from pathlib import Path

from planner.validate.job import Failure, RankResult, Reading


def reading(step, phase="forward"):
    return Reading(step=step, phase=phase, start_bytes=0, end_bytes=1, peak_bytes=2)


def well(_job, place, tell):
    """Tell three readings; the machine says what the rank saw."""
    readings = tuple(reading(step) for step in range(3))
    for each in readings:
        tell(each)
    print(f"rank {place.rank} was here")  # noqa: T201 - the log is what is tested
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")
    seen = {name: os.environ[name] for name in names} | {"pid": os.getpid()}
    return RankResult(rank=place.rank, outcome="done", readings=readings, machine=seen)


def killed(_job, place, tell):
    """Rank 1 is killed in its second step, the others wait for it."""
    tell(reading(0))
    if place.rank == 1:
        time.sleep(1)  # for the reading to leave
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def hung(_job, place, tell):
    """Rank 1 stops dead after one reading, the others wait for it after two."""
    tell(reading(0))
    if place.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    tell(reading(1))
    time.sleep(600)


def out_of_memory(_job, place, tell):
    tell(reading(0))
    if place.rank == 1:
        failure = Failure(kind="OutOfMemoryError", message="no room", wanted_bytes=2**20)
        return RankResult(rank=1, outcome="out_of_memory", failure=failure, readings=(reading(0),))
    return time.sleep(600)


def peers_fail(_job, place, tell):
    """Rank 1 is killed, and rank 0 gets to see a broken connection before anybody knows why."""
    tell(reading(0))
    if place.rank == 1:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    raise ConnectionError("connection closed by peer")


def slow(_job, _place, tell):
    for step in range(600):
        tell(reading(step))
        time.sleep(0.5)


def together(job, place, tell):
    """Rank 0 waits for rank 0 of another validation of the same folder's files."""
    if place.rank == 0:
        (Path(job.folder) / f"here-{os.getpid()}").touch()
        while len(list(Path(job.folder).glob("here-*"))) < 2:
            time.sleep(0.1)
    return well(job, place, tell)


def until_allowed(job, place, tell):
    """Go on until the folder of the file has another one, ``enough``."""
    step = 0
    while not (Path(job.folder) / "enough").exists():
        tell(reading(step))
        step += 1
        time.sleep(0.3)
    return well(job, place, tell)
