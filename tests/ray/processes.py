"""Finds what a run left behind: every process that it starts inherits a mark."""

import os
import time
from contextlib import contextmanager
from pathlib import Path

MARK = "PLANNER_TEST_RUN"


def marked(value):
    """Processes other than this one whose environment has the mark, with their commands."""
    needle = f"{MARK}={value}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
            if alive and needle in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
        except (OSError, IndexError):
            continue
    found.pop(os.getpid(), None)
    return found


def left(value, seconds=20):
    """Processes that still run some seconds after all should have ended."""
    end = time.monotonic() + seconds
    while (found := marked(value)) and time.monotonic() < end:
        time.sleep(0.2)
    return found


@contextmanager
def mark(monkeypatch, value):
    """All that starts inside carries the mark; nothing of it may be left."""
    monkeypatch.setenv(MARK, value)
    yield
    assert not left(value)
