"""Processor seconds and host memory of a rehearsed rank, and how they grow.

python experiments/009-rehearsal-speed/bench.py            # all
python experiments/009-rehearsal-speed/bench.py scaling    # only the cases that begin so
"""

import multiprocessing
import os
import resource
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}

import yaml

from planner.model.load import read_configuration
from planner.rehearse.run import shortened
from planner.rehearse.worker import rehearse_rank
from planner.spec.dump import dump
from planner.spec.load import load
from planner.validate.job import Job, Place
from planner.validate.worker import preload

LLAMA = {
    "model": "llama-3-70b",
    "cluster": {"nodes": 64, "devices_per_node": 8, "device": "h100-sxm-80gb"},
    "training": {"sequence_length": 4096, "recompute": "full"},
    "layout": {"zero_stage": 3},
}
DEEPSEEK = {
    "model": "deepseek-v3",
    "cluster": {"nodes": 128, "devices_per_node": 8, "device": "h100-sxm-80gb"},
    "training": {
        "sequence_length": 4096,
        "recompute": "full",
        "implementation": "reference",
        "global_batch_size": 1536,
    },
    "layout": {"pp": 16, "ep": 64, "zero_stage": 1},
    "deepspeed": {"expert_engine": "moe"},
}


def short_llama(num_devices: int, *, layers: int = 8) -> dict:
    """Few layers of the same width, on any number of devices."""
    keys = dict(read_configuration("llama-3-70b", folder=Path())) | {"num_hidden_layers": layers}
    cluster = LLAMA["cluster"] | {"nodes": num_devices // 8}
    return LLAMA | {"model": keys, "cluster": cluster}


CASES = {
    **{
        f"scaling: ZeRO-3, 8 layers, {n} devices": (short_llama(n), 3)
        for n in (8, 64, 512, 4096, 8192)
    },
    **{
        f"depth: ZeRO-3, {n} layers, 512 devices": (short_llama(512, layers=n), 3)
        for n in (4, 16, 32)
    },
    "whole: Llama-3-70B, ZeRO-3, 512 devices": (LLAMA, 0),
    "whole: DeepSeek-V3, pp 16, ep 64, first stage": (DEEPSEEK, 0),
    "whole: DeepSeek-V3, pp 16, ep 64, a stage of experts": (DEEPSEEK, 512),
}


def main() -> None:
    """Each case in a fork of its own of a process that has imported everything."""
    chosen = sys.argv[1] if len(sys.argv) > 1 else ""
    print(f"baseline: {_additions() * 1000:.0f} ms for ten million additions in Python")
    start = process_time()
    preload()
    print(f"imports, once for all ranks: {process_time() - start:.1f} s")
    print(f"{'case':56} {'cpu s':>7} {'units':>6} {'host MiB':>9}  outcome")
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for name in CASES:
            if name.startswith(chosen):
                seconds, unit, peak_mib, outcome = pool.apply(_rehearse, (name,))
                print(
                    f"{name:56} {seconds:7.1f} {seconds / unit:6.0f} {peak_mib:9}  {outcome}",
                    flush=True,
                )


def _rehearse(name: str) -> tuple[float, float, int, str]:
    """Processor seconds, those of the baseline beside it, MiB at most, how it ended."""
    document, rank = CASES[name]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "case.yaml"
        path.write_text(yaml.safe_dump(document))
        spec = shortened(load(path))
    job = Job(
        spec=dump(spec),
        folder=".",
        num_ranks=spec.fixed_layout.num_devices,
        steps=2,
        accelerator="standin",
        collectives="fake",
    )
    place = Place(rank=rank, local_rank=0, local_size=1, master_address="127.0.0.1", master_port=0)
    unit = _additions()
    start = process_time()
    result = rehearse_rank(job, place, lambda _: None)
    seconds = process_time() - start
    unit = (unit + _additions()) / 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return seconds, unit, peak, result.outcome


def _additions() -> float:
    start = process_time()
    total = 0
    for number in range(10_000_000):
        total += number
    return process_time() - start


if __name__ == "__main__":
    main()
