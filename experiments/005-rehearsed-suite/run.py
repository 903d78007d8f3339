"""Rehearse what experiment 003 ran for real: ``python experiments/005-rehearsed-suite/run.py``.

What is recorded in results/ is not rehearsed again; ``--report`` only writes the README's results.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from runpy import run_path
from tempfile import TemporaryDirectory

from compared import Compared, compared, table

from planner.rehearse.worker import rehearse_rank
from planner.validate.job import Job
from planner.validate.record import write_text
from planner.validate.suite.case import Case
from planner.validate.suite.command import PACKAGES, RESULTS
from planner.validate.suite.measure import measure
from planner.validate.suite.records import Measured, append, read

HERE = Path(__file__).parent
SUITE = HERE.parent / "003-cpu-suite"
CASES: tuple[Case, ...] = run_path(str(SUITE / "suite.py"))["CASES"]
VERSIONS = {name: version(name) for name in PACKAGES}
RELEASE = VERSIONS["deepspeed"]
RECORDS = HERE / "results" / f"deepspeed-{RELEASE}.jsonl"


def main() -> int:
    """Rehearse what is missing, write the table; 1 if a rehearsal failed."""
    asked = _parser().parse_args()
    real = read(SUITE / "results" / f"deepspeed-{RELEASE}.jsonl")
    if not asked.report:
        _rehearse(asked, real)
    rehearsed = read(RECORDS)
    rows = [
        compared(case.name, real[case.name].results, rehearsed[case.name].results)
        for case in CASES
        if case.name in real and case.name in rehearsed
    ]
    head, _, _ = (HERE / "README.md").read_text(encoding="utf-8").partition(RESULTS)
    write_text(HERE / "README.md", f"{head}{RESULTS}\n{_told(rows)}\n")
    return int(any(row.failures for row in rows))


def _told(rows: list[Compared]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in VERSIONS.items())
    return f"Written by `run.py --report`; {packages}.\n\n{table(rows)}"


def _rehearse(asked: Namespace, real: dict[str, Measured]) -> None:
    os.nice(asked.nice)
    todo = list(_pending(asked.only, real, read(RECORDS)))
    with TemporaryDirectory() as logs:
        for number, (case, job) in enumerate(todo, 1):
            measured = measure(
                case,
                job,
                run_rank=rehearse_rank,
                logs=Path(asked.logs or logs),
                processes=asked.processes,
                versions=VERSIONS,
            )
            append(RECORDS, replace(measured, key=real[case.name].key))
            failures = [result.failure for result in measured.results if result.failure]
            said = failures[0].message.splitlines()[:1] if failures else []
            print(f"{number}/{len(todo)} {case.name}: {measured.seconds:.0f} s", *said, flush=True)


def _pending(
    only: str, real: dict[str, Measured], rehearsed: dict[str, Measured]
) -> Iterator[tuple[Case, Job]]:
    """Cases whose ranks all came to their end for real, with bytes to compare."""
    for case in CASES:
        run, known = real.get(case.name), rehearsed.get(case.name)
        if run is None or case.capacity is not None or not fnmatchcase(case.name, only):
            continue
        if any(result.outcome != "done" for result in run.results):
            continue
        if known is None or known.key != run.key or not known.ended:
            yield case, replace(case.job(RELEASE), accelerator="standin", collectives="fake")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description="Rehearse the recorded cases of experiment 003.")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names of cases, as a glob")
    parser.add_argument("--processes", type=int, default=2, help="ranks at a time (default 2)")
    parser.add_argument("--nice", type=int, default=10, help="how polite to be (default 10)")
    parser.add_argument("--logs", metavar="FOLDER", help="keep what the ranks print")
    parser.add_argument("--report", action="store_true", help="only write the table anew")
    return parser


if __name__ == "__main__":
    sys.exit(main())
