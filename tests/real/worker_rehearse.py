"""Rehearses one rank of each file of the command line and writes what it booked.

Files of the second list are rehearsed once more with every view made and nothing recalled.
"""

import json
import multiprocessing
import os
import sys
from contextlib import nullcontext
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[2]))

from planner.rehearse.replay import Modelled
from planner.rehearse.worker import rehearse_rank
from planner.spec.dump import dump
from planner.spec.load import load
from planner.validate.job import Job, Place, as_document
from planner.validate.worker import preload


def rehearse(file, rank):
    spec = load(file)
    job = Job(
        spec=dump(spec),
        folder=str(spec.folder),
        num_ranks=spec.fixed_layout.num_devices,
        steps=2,
        accelerator="standin",
        collectives="fake",
    )
    place = Place(rank=rank, local_rank=0, local_size=1, master_address="127.0.0.1", master_port=0)
    modelled = Modelled(snapshots=(Path(file).with_suffix(".trace.json"),))
    return as_document(rehearse_rank(job, place, lambda _: None, modelled=modelled))


def rehearse_slowly(file, rank):
    from planner.rehearse import recall, shortcuts

    shortcuts.shortcuts = nullcontext
    recall.Recall.__call__ = lambda _, func, *args, **kwargs: func(*args, **kwargs)
    return rehearse(file, rank)


def main():
    told, slow, output = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    preload()
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        results = pool.starmap(rehearse, told.items(), chunksize=1)
        again = pool.starmap(rehearse_slowly, [(file, told[file]) for file in slow], chunksize=1)
    answers = {
        "fast": dict(zip(told, results, strict=True)),
        "slow": dict(zip(slow, again, strict=True)),
    }
    output.write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
