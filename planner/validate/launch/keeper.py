"""Clears away after a Ray of our own, also when the process that started it is killed.

``python -m planner.validate.launch.keeper FOLDER`` waits for the end of its standard input, which
comes when that process closes it or dies. Some of Ray's processes would go on for a minute.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from planner.validate.launch.environment import end_marked
from planner.validate.signals import undisturbed

MARK = "PLANNER_RAY"
"""Every process of a Ray of our own has it, with the Ray's folder, in its environment."""


@contextmanager
def kept_folder() -> Iterator[str]:
    """A temporary folder; afterwards it is gone, and so are all processes with its mark."""
    folder = tempfile.mkdtemp(prefix="planner-ray-")
    command = [sys.executable, "-m", __name__, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as keeper:  # noqa: S603 - ourselves
        try:
            yield folder
        finally:
            with undisturbed():
                keeper.communicate()


def main() -> None:
    """Wait, then end what is left and remove its folder."""
    (folder,) = sys.argv[1:]
    sys.stdin.read()
    end_marked(f"{MARK}={folder}")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
