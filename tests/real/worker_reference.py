"""Trains files as ranks that are alone, one after the other in this process, and reports each."""

import gc
import json
import sys
from pathlib import Path

from planner.validate.job import Job, Place, as_document
from planner.validate.worker import preload, run_rank


def main() -> None:
    """Run every ``(text of a file, ranks, rank, steps)`` of the command line."""
    case = json.loads(sys.argv[1])
    preload()
    results = []
    for text, ranks, rank, steps in case["runs"]:
        job = Job(spec=text, folder="", num_ranks=ranks, steps=steps, collectives="fake")
        place = Place(
            rank=rank, local_rank=rank, local_size=ranks, master_address="127.0.0.1", master_port=0
        )
        results.append(as_document(run_rank(job, place, lambda _: None)))
        gc.collect()
        gc.freeze()
        Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
