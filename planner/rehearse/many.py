"""Many layouts rehearsed side by side; each is kept as soon as it is done, and not done again."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from planner.errors import PlannerError
from planner.rehearse.run import Rehearsal, document, rehearse
from planner.spec.dump import dump
from planner.spec.load import Spec, load
from planner.validate.compare import phase_name
from planner.validate.job import RankResult, Reading, as_document
from planner.validate.validate import TOLERANCE

Rehearse = Callable[[str, Spec], Rehearsal]
"""Of one layout, by its name."""


@dataclass(frozen=True, slots=True)
class Store:
    """A file of JSON lines, one a layout; a line that was cut off is as if it was never begun."""

    path: Path

    def read(self) -> dict[str, dict[str, Any]]:
        """All records by key."""
        if not self.path.exists():
            return {}
        lines = self.path.read_bytes().split(b"\n")[:-1]
        records = [json.loads(line) for line in lines if line]
        return {record["key"]: record for record in records}

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record whole, on the disk before this returns."""
        self._mend()
        with self.path.open("ab") as stream:
            stream.write(json.dumps(record).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _mend(self) -> None:
        """Take away what follows the last whole line."""
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)


def rehearse_many(
    specs: Iterable[tuple[str, Spec]], which: str, *, store: Store, jobs: int, one: Rehearse
) -> Iterator[dict[str, Any]]:
    """Yield the record of every layout, those of earlier runs first, the others as they end.

    What stops one layout is its record; the others go on.
    """
    known = store.read()
    wanted = {key_of(spec, which): (name, spec) for name, spec in specs}
    yield from (known[key] for key in wanted if key in known)
    left = {key: each for key, each in wanted.items() if key not in known}
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = {
            pool.submit(_record, key, name, spec, one): key for key, (name, spec) in left.items()
        }
        try:
            for future in as_completed(futures):
                record = future.result()
                store.add(record)
                yield record
        finally:
            pool.shutdown(cancel_futures=True)


def rehearse_files(
    files: Sequence[Path], which: str, *, steps: int, store: Store, jobs: int
) -> Iterator[dict[str, Any]]:
    """The same of files, ``jobs`` or as many as this machine has cores at once."""
    logs = Path(mkdtemp(prefix="planner-rehearsals-"))

    def one(name: str, spec: Spec) -> Rehearsal:
        own = logs / sha256(name.encode()).hexdigest()[:16]
        own.mkdir()
        return rehearse(spec, which, steps=steps, logs=own, progress=lambda *_: None, at_once=1)

    specs = [(str(file), load(file)) for file in files]
    yield from rehearse_many(specs, which, store=store, jobs=jobs or os.cpu_count() or 1, one=one)


def agrees(record: Mapping[str, Any]) -> bool:
    """Every point of a record is within the tolerance."""
    return all(
        abs(point["predicted_bytes"] - point["measured_bytes"])
        <= TOLERANCE * point["measured_bytes"]
        for point in record["document"]["points"]
        if point["quantity"] in {"allocated", "peak_allocated"}
    )


def key_of(spec: Spec, which: str) -> str:
    """What a record is found by: a digest of all that it depends on."""
    named = isinstance(spec.model, str) and (spec.folder / spec.model).exists()
    where = spec.folder.resolve() if named else ""
    return sha256(f"{where}\n{dump(spec)}\n{which}".encode()).hexdigest()[:16]


def _record(key: str, name: str, spec: Spec, one: Rehearse) -> dict[str, Any]:
    try:
        made = one(name, spec)
    except PlannerError as error:
        return {"key": key, "name": name, "error": str(error), "document": None, "ranks": []}
    ranks = [as_document(telling(result)) for result in made.results]
    return {"key": key, "name": name, "error": None, "document": document(made), "ranks": ranks}


def telling(result: RankResult) -> RankResult:
    """Keep what `validate.compare.points` looks at: of each phase the highest and the last."""
    last_step = max((reading.step for reading in result.readings), default=0)
    kept: dict[str, tuple[Reading, Reading]] = {}
    for reading in result.readings:
        if reading.step in {-1, 0, last_step}:
            name = phase_name(reading)
            top = kept[name][0] if name in kept else reading
            kept[name] = (max(top, reading, key=lambda each: each.peak_bytes), reading)
    chosen = {id(each) for pair in kept.values() for each in pair}
    return replace(result, readings=tuple(r for r in result.readings if id(r) in chosen))
