"""Run the suite and write its table: ``python experiments/003-cpu-suite/run.py``.

What is recorded in results/ for the same file and releases is not run again; ``--report`` only
plans the recorded cases again and writes the README's results.
"""

import sys
from functools import partial
from pathlib import Path

from suite import CASES, CAUSES

from planner.validate.suite.command import Suite, main

if __name__ == "__main__":
    suite = Suite(folder=Path(__file__).parent, cases=CASES, causes=CAUSES)
    sys.exit(main(suite, say=partial(print, flush=True)))
