"""What a run leaves behind is cleared, and nothing else."""

import os
import subprocess
import sys

from planner.validate.launch.environment import (
    clear_shared_memory,
    end_marked,
    enter_extensions,
    extensions_folder,
)

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


def test_only_the_buffers_of_the_rendezvous_are_removed(tmp_path):
    for port in (29500, 29501):
        (tmp_path / f"deepspeed_allreduce_buffer_0_127.0.0.1_{port}_1").touch()
    clear_shared_memory("127.0.0.1", 29500, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [
        "deepspeed_allreduce_buffer_0_127.0.0.1_29501_1"
    ]


def test_a_folder_that_was_told_is_kept_for_extensions(tmp_path):
    assert extensions_folder({"TORCH_EXTENSIONS_DIR": "told"}, tmp_path) == "told"
    assert extensions_folder({}, tmp_path).startswith(str(tmp_path))


def test_a_compilation_that_was_killed_blocks_nobody_and_one_that_runs_is_left_alone(tmp_path):
    lock = tmp_path / "deepspeed_shm_comm_op" / "lock"
    lock.parent.mkdir()
    lock.touch()
    with enter_extensions(tmp_path):
        assert not lock.exists()
        lock.touch()
        with enter_extensions(tmp_path):
            assert lock.exists()
