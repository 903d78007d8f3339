"""What a run leaves behind is cleared, and nothing else."""

import os
import subprocess
import sys

from planner.validate.launch.environment import end_marked

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def test_only_processes_with_the_mark_are_ended():
    with (
        subprocess.Popen(SLEEP, stdout=-1, env=os.environ | {"PLANNER_X": "1"}) as marked,
        subprocess.Popen(SLEEP, stdout=-1, env=os.environ | {"PLANNER_X": "11"}) as other,
    ):
        assert marked.stdout.readline() == other.stdout.readline() == b"up\n"
        end_marked("PLANNER_X=1")
        assert marked.wait() == -9
        assert other.poll() is None
        other.kill()
