"""Runs one rank of several jobs, one after the other, and reports what became of each."""

import json
import os
import sys
from pathlib import Path

from planner.validate.job import Job, Place, as_document
from planner.validate.worker import run_rank


def main() -> None:
    """The jobs of the command line, as the rank that the environment names."""
    place = Place(
        rank=int(os.environ["RANK"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_size=int(os.environ["LOCAL_SIZE"]),
        master_address=os.environ["MASTER_ADDR"],
        master_port=int(os.environ["MASTER_PORT"]),
    )
    jobs = [Job(**document) for document in json.loads(sys.argv[1])]
    results = [as_document(run_rank(job, place, lambda _: None)) for job in jobs]
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
