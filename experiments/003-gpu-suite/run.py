"""Run the suite on this machine's GPUs: ``python experiments/003-gpu-suite/run.py``.

NOT YET RUN: no GPU was at hand when it was written. Its options are those of the CPU suite.
"""

import sys
from functools import partial
from pathlib import Path

from suite import CASES

from planner.validate.suite.command import Suite, main

if __name__ == "__main__":
    suite = Suite(folder=Path(__file__).parent, cases=CASES, causes={})
    sys.exit(main(suite, say=partial(print, flush=True)))
