"""The environment variables under which one rank trains."""

import fcntl
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

from planner.validate.job import Job, Place


def environment(job: Job, place: Place) -> dict[str, str]:
    """What torch.distributed and DeepSpeed read from the environment, for one rank."""
    size = str(place.local_size)
    return {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(job.num_ranks),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": place.master_address,
        "MASTER_PORT": str(place.master_port),
        "DS_ACCELERATOR": "cuda" if job.accelerator == "cuda" else "cpu",
        "OMP_NUM_THREADS": "1",
    }


def extensions_folder(environ: Mapping[str, str], home: Path) -> str:
    """Where DeepSpeed keeps what it compiles: a folder of its own for every pair of releases.

    torch keeps one folder a user (torch/utils/cpp_extension.py:2800 of 2.13), so another release of
    DeepSpeed would load what this one compiled and miss functions in it.
    """
    told = environ.get("TORCH_EXTENSIONS_DIR")
    if told:
        return told
    releases = "-".join(f"{name}-{_release(name)}" for name in ("deepspeed", "torch"))
    return str(home / ".cache" / "planner" / "torch_extensions" / releases)


def enter_extensions(folder: Path) -> IO[str]:
    """Share the folder for as long as the stream is open; whoever is alone there clears it.

    torch marks a running compilation by a file that a killed process leaves behind, and for which
    all later ones wait without end (torch/utils/file_baton.py:50 of 2.13).
    """
    folder.mkdir(parents=True, exist_ok=True)
    stream = (folder / "in-use").open("w", encoding="utf-8")
    with suppress(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in folder.glob("*/lock"):
            left.unlink(missing_ok=True)
    fcntl.flock(stream, fcntl.LOCK_SH)
    return stream


def clear_shared_memory(address: str, port: int, folder: Path = Path("/dev/shm")) -> None:  # noqa: S108 - DeepSpeed's own place
    """Remove what ranks that were killed left there: DeepSpeed's buffers of 64 MiB a rank.

    They are named by user, rendezvous and rank (ops/csrc/cpu/comm/shm.cpp:94), and no process
    removes those of another one.
    """
    for left in folder.glob(f"deepspeed_allreduce_buffer_*_{address}_{port}_*"):
        left.unlink(missing_ok=True)


def end_marked(mark: str) -> None:
    """End every process but this one in whose environment ``NAME=value`` was when it started."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone by now, or another user's
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                process = int(folder.name)
                if process != os.getpid():
                    os.kill(process, signal.SIGKILL)


def _release(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
