"""The planner with ranks that do what a test wants: ``python -m tests.ray.driver FUNCTION ...``."""

import sys

from planner.cli import main
from planner.validate import worker
from tests.ray import ranks

if __name__ == "__main__":
    worker.run_rank = getattr(ranks, sys.argv.pop(1))
    main()
