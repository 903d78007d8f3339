"""Starts a worker script on some CPU ranks and collects what each of them reports.

A worker is a Python file. It reads its case from the JSON in ``sys.argv[1]``, finds RANK,
WORLD_SIZE and the rendezvous in its environment, and writes one JSON document to the path in
``sys.argv[2]``.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run_ranks(worker: Path, case: Any, *, ranks: int, timeout_seconds: float = 600) -> list[Any]:
    """Run ``worker`` once a rank; return what each wrote, by rank. All processes are ended."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"rank{rank}.json" for rank in range(ranks)]
        logs = [Path(folder) / f"rank{rank}.log" for rank in range(ranks)]
        port = _free_port()
        processes = [
            _start(worker, case, outputs[rank], logs[rank], _environment(rank, ranks, port))
            for rank in range(ranks)
        ]
        try:
            for process in processes:
                process.wait(timeout_seconds)
        finally:
            for process in processes:
                _end(process)
        missing = [rank for rank in range(ranks) if not outputs[rank].exists()]
        if missing:
            raise AssertionError(
                f"rank {missing[0]} wrote nothing:\n{logs[missing[0]].read_text()[-4000:]}"
            )
        return [json.loads(output.read_text()) for output in outputs]


def _start(
    worker: Path, case: Any, output: Path, log: Path, environment: dict[str, str]
) -> "subprocess.Popen[bytes]":
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, str(worker), json.dumps(case), str(output)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - one system call, no threads here
        )


def _end_with_parent() -> None:
    """Ask the kernel to kill the worker when the test runner dies, however it dies."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    root = Path(__file__).parents[2]
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
