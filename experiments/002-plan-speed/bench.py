"""How long a whole plan takes: every stage's worst rank, walked exactly.

    python experiments/002-plan-speed/bench.py

In this process, cold (nothing remembered, as the first plan), warm (the same plan again) and other
(the next of a row of neighbours, none of which was planned before, with other sequences and other
buckets, as a search asks for them); and from the shell, beside a Python that does nothing.
Processor time, as the machine may be busy, the best of some rounds; a baseline of pure Python tells
machines apart.
"""

import functools
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

from planner.model.description import Model
from planner.model.load import load_model
from planner.plan import make_plan
from planner.spec.load import Spec, load

ROOT = Path(__file__).parents[2]
FILES = (
    "qwen2-72b-64xh100",
    "deepseek-v3-2048xh800",
    "llama-3-8b-8xh100",
    "mixtral-8x7b-16xa100",
)
ROUNDS = 5


def best_seconds(
    action: Callable[[], object],
    *,
    before: Callable[[], object] = int,
    clock: Callable[[], float] = time.process_time,
) -> float:
    """Shortest of some rounds, each after ``before``, which is not timed."""
    taken = []
    for _ in range(ROUNDS):
        before()
        start = clock()
        action()
        taken.append(clock() - start)
    return min(taken)


def forget() -> None:
    """Empty what the planner's own functions remember."""
    for known in gc.get_objects():
        if isinstance(known, functools._lru_cache_wrapper) and "planner" in known.__module__:  # noqa: SLF001 - there is no public name
            known.cache_clear()


def neighbours(spec: Spec) -> Iterator[Spec]:
    """The same file with shorter and shorter sequences, and smaller and smaller buckets."""
    zero = spec.deepspeed.zero_optimization
    for place in range(1, 2 * ROUNDS + 1):
        length = spec.training.sequence_length - 64 * place
        size = zero.reduce_bucket_size - 1_000_000 * place
        yield replace(
            spec,
            training=replace(spec.training, sequence_length=length),
            deepspeed=replace(
                spec.deepspeed, zero_optimization=replace(zero, reduce_bucket_size=size)
            ),
        )


def other_seconds(spec: Spec, model: Model) -> float:
    """Of a neighbour's first plan, the best half's mean: a machine that is busy spoils some."""
    taken = []
    for other in neighbours(spec):
        start = time.process_time()
        make_plan(other, model=model)
        taken.append(time.process_time() - start)
    return sum(sorted(taken)[:ROUNDS]) / ROUNDS


def children_seconds() -> float:
    """Processor time of the processes that were started and have ended."""
    used = getrusage(RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def shell_seconds(*arguments: str) -> tuple[float, float]:
    """Processor time and wall time of a Python process of its own, its modules compiled before."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / "plan-speed-bytecode")

    def run() -> None:
        subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT, env=environment
        )

    run()
    return best_seconds(run, clock=children_seconds), best_seconds(run, clock=time.perf_counter)


def baseline() -> int:
    """Ten million additions."""
    return sum(range(10_000_000))


def main() -> None:
    """Print one line a file, then the shell."""
    print(f"baseline: {1e3 * best_seconds(baseline):.0f} ms for ten million additions in Python")
    names = ("load ms", "model ms", "cold ms", "warm ms", "other ms")
    print(f"{'file':24} {' '.join(f'{name:>8}' for name in names)} {'others/s':>8}")
    for name in FILES:
        path = ROOT / "cluster_configs" / f"{name}.yaml"
        spec = load(path)
        model = load_model(spec.model, folder=spec.folder)
        model_of = partial(load_model, spec.model, folder=spec.folder)
        plan_of = partial(make_plan, spec, model=model)
        figures = (
            best_seconds(partial(load, path)),
            best_seconds(model_of),
            best_seconds(plan_of, before=forget),
            best_seconds(plan_of),
            other_seconds(spec, model),
        )
        milliseconds = " ".join(f"{1e3 * figure:8.1f}" for figure in figures)
        print(f"{name:24} {milliseconds} {1 / figures[-1]:8.1f}")
    nothing = shell_seconds("-c", "pass")
    for name in FILES[:2]:
        whole = shell_seconds("-m", "planner.cli", "plan", f"cluster_configs/{name}.yaml")
        for clock, taken, least in zip(("processor", "wall"), whole, nothing, strict=True):
            print(
                f"shell, {clock} time: planner plan {name} {1e3 * taken:.0f} ms, "
                f"python -c pass {1e3 * least:.0f} ms"
            )


if __name__ == "__main__":
    main()
