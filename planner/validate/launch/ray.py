"""Ranks as Ray actors: on this machine under a Ray of its own, or on a cluster that is there.

A tensor-parallel group is one bundle of a placement group, so that its ranks share a node; ranks
are numbered node by node. What Ray prints goes to a log of its own.
"""

import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from planner.errors import LaunchError
from planner.validate.job import Failure, Job, Note, Place, Progress, RankResult, Reading
from planner.validate.launch.keeper import MARK, kept_folder
from planner.validate.launch.outcome import Patience, lost, root_failure, settle
from planner.validate.launch.ray_rank import RankActor, RunRank, Where, with_log
from planner.validate.signals import daemons_start, undisturbed

STORE_BYTES = 80 * 2**20
"""Readings are small; Ray accepts no smaller object store than about 75 MiB."""
NODE_SECONDS = 30.0
"""For a node that lost a process to show that it is still there."""
QUIET = {
    "RAY_worker_niceness": "0",  # 15 unless told: on a busy machine ranks would starve
    "RAY_memory_monitor_refresh_ms": "0",  # ends ranks for what other programs take
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RayLauncher:
    """Starts a job's ranks through Ray."""

    run_rank: RunRank
    logs: Path
    """Folder of the ranks' logs, and of Ray's own."""
    address: str | None = None
    """Of a Ray that is there; None: one of its own on this machine, for this job only."""
    group_size: int = 1
    """Ranks that must share a node, in a row."""
    silence_seconds: float = 600.0
    """No news from any rank for so long: it hangs."""
    start_seconds: float = 120.0
    """For the cluster to give room and to start the processes."""
    attempts: int = 2
    """A start that failed and a node that was lost are tried again; nothing else is."""

    def run(self, job: Job, *, progress: Progress) -> tuple[RankResult, ...]:
        """All ranks' results, by rank; LaunchError if no rank could be started."""
        results: tuple[RankResult, ...] = ()
        for attempt in range(1, self.attempts + 1):
            try:
                with _connected(self, job, progress):
                    results = _Attempt(self, job, progress).run()
            except LaunchError:
                if results:  # the cluster is too small without the node that it lost
                    return results
                if attempt == self.attempts:
                    raise
                continue
            cause = _worth_another(results)
            if cause is None or attempt == self.attempts:
                break
            rank, failure = cause
            told = f"rank {rank}: {failure.kind}: {failure.message}; trying once more"
            progress(None, Note(told))
        return results


def _worth_another(results: Sequence[RankResult]) -> tuple[int, Failure] | None:
    """The rank and failure where a node was lost, or a process before anybody read anything."""
    cause = root_failure(results)
    if cause is None or cause.failure is None:
        return None
    silent = not any(result.readings for result in results)
    again = cause.failure.kind == "node_lost" or (cause.failure.kind == "killed" and silent)
    return (cause.rank, cause.failure) if again else None


@contextmanager
def _connected(launcher: "RayLauncher", job: Job, progress: Progress) -> Iterator[None]:
    """A Ray to talk to; one of our own is gone afterwards, with all of its processes."""
    with (launcher.logs / "ray.log").open("a", encoding="utf-8") as log, ExitStack() as stack:
        stack.enter_context(redirect_stderr(log))
        stack.enter_context(redirect_stdout(log))
        address, own = launcher.address, None
        if address is None:
            own = stack.enter_context(kept_folder())
            stack.enter_context(_environment({MARK: own} | _own_environment()))
        try:
            import ray
        except ImportError:
            raise LaunchError("ray is not installed; install planner[validate]") from None
        where = f"connecting to Ray at {address}" if address else "starting a Ray on this machine"
        progress(None, Note(where))
        try:
            with daemons_start():
                _connect(ray, address, job, own)
            yield
        finally:
            with undisturbed():
                ray.shutdown()


def _own_environment() -> dict[str, str]:
    """Of a Ray of our own: quiet, and closed to everybody who does not know its token.

    Ray's client reads the token once, when it is imported; one that was imported before goes on
    as it is.
    """
    return QUIET | _token()


@cache
def _token() -> dict[str, str]:
    """One a process. Its ports are open to the network, whatever address Ray is given."""
    if "ray" in sys.modules:
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _connect(ray: Any, address: str | None, job: Job, own: str | None) -> None:
    if address:
        _reach(address)
    common = {"log_to_driver": False, "configure_logging": False, "logging_level": "ERROR"}
    try:
        if address:
            ray.init(address=address, **common)
        else:
            ray.init(
                address="local",
                num_cpus=job.num_ranks,
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                _temp_dir=own,
                **common,
            )
    except Exception as error:  # Ray raises plain ones, too (_private/node.py:440)
        where = f"Ray at {address}" if address else "a local Ray"
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LaunchError(f"{where} does not answer: {first}; see that it runs") from error


def _reach(address: str) -> None:
    """Find out in seconds what Ray's client would find out in minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise LaunchError(f"Ray at {address} does not answer: {reason}; see that it runs") from None


@contextmanager
def _environment(told: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@dataclass(slots=True)
class _Attempt:
    """One start of all ranks, and what they told."""

    launcher: RayLauncher
    job: Job
    progress: Progress
    actors: list[Any] = field(default_factory=list)
    """By rank, as soon as it is known where they are."""
    where: list[Where] = field(default_factory=list)
    logs: dict[int, str] = field(default_factory=dict)
    told: dict[int, list[Reading]] = field(default_factory=dict)
    ended: dict[int, RankResult] = field(default_factory=dict)
    answers: dict[str, bool] = field(default_factory=dict)
    """Of nodes that lost a process: whether they are still there."""

    def run(self) -> tuple[RankResult, ...]:
        """Start, listen until all have ended or one has failed, and clear away."""
        import ray

        group = self._room()
        try:
            self._start(group)
            silence = self._listen()
        except ray.exceptions.RayError as error:
            raise LaunchError(f"the ranks could not be started: {_first_line(error)}") from error
        finally:
            with undisturbed():
                self._end(group)
        return settle(self.told, self.ended, silence_seconds=silence, logs=self.logs)

    def _room(self) -> Any:
        """Reserve a bundle for every tensor-parallel group."""
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group

        size = self.launcher.group_size
        need = {"CPU": size} | ({"GPU": size} if self.job.accelerator == "cuda" else {})
        group = placement_group([need] * (self.job.num_ranks // size), strategy="PACK")
        if not group.wait(self.launcher.start_seconds):
            remove_placement_group(group)
            there = {key: ray.cluster_resources().get(key, 0.0) for key in need}
            raise LaunchError(
                f"no room for {self.job.num_ranks} ranks, {size} on a node at a time, each with "
                f"{' and '.join('1 ' + key for key in need)}, within "
                f"{self.launcher.start_seconds:.0f} s; the cluster has "
                + ", ".join(f"{value:.0f} {key}" for key, value in there.items())
            )
        return group

    def _start(self, group: Any) -> None:
        """Start a process a rank; those of one node get numbers in a row."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        size, cuda = self.launcher.group_size, self.job.accelerator == "cuda"
        actor_class = ray.remote(num_cpus=1, num_gpus=int(cuda), max_restarts=0)(RankActor)
        actors = [
            actor_class.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=rank // size
                )
            ).remote()
            for rank in range(self.job.num_ranks)
        ]
        self.actors = actors
        seconds = self.launcher.start_seconds
        where = ray.get([actor.where.remote() for actor in actors], timeout=seconds)
        first = {node: rank for rank, (node, *_) in reversed(list(enumerate(where)))}
        order = sorted(range(len(actors)), key=lambda rank: (first[where[rank].node], rank))
        self.actors = [actors[rank] for rank in order]
        self.where = [where[rank] for rank in order]
        paths = [
            actor.open_log.remote(str(self.launcher.logs), f"rank-{rank}.log")
            for rank, actor in enumerate(self.actors)
        ]
        self.logs = dict(enumerate(ray.get(paths, timeout=seconds)))
        self.told = {rank: [] for rank in range(len(self.actors))}
        self.progress(None, Note(f"{len(order)} ranks, on nodes: {len(first)}"))

    def _listen(self) -> float | None:
        """Take what the ranks tell; return how long they were silent, if that is why it ended."""
        import ray

        launcher = self.launcher
        port = ray.get(self.actors[0].free_port.remote(), timeout=launcher.start_seconds)
        streams = {
            actor.run.options(num_returns="streaming").remote(
                self.job,
                self._place(rank, port),
                ",".join(self._devices(rank)),
                launcher.run_rank,
                launcher.silence_seconds,
            ): rank
            for rank, actor in enumerate(self.actors)
        }
        patience = Patience(launcher.silence_seconds)
        while streams:
            ready, _ = ray.wait(list(streams), timeout=patience.left)
            if not ready:
                return patience.silence
            for stream in ready:
                self._take(streams[stream], stream)
                if streams[stream] in self.ended:
                    del streams[stream]
            patience.renew(self.ended)
        return None

    def _take(self, rank: int, stream: Any) -> None:
        """One reading, or the end of the rank."""
        import ray

        try:
            each = ray.get(next(stream))
        except (ray.exceptions.RayError, StopIteration) as error:
            self.ended[rank] = self._lost(rank, error)
            return
        if isinstance(each, RankResult):
            self.ended[rank] = with_log(each, self.logs[rank])
            return
        if isinstance(each, Reading):
            self.told[rank].append(each)
        self.progress(rank, each)

    def _lost(self, rank: int, error: Exception) -> RankResult:
        """The process is gone, and perhaps its node."""
        where, log, readings = self.where[rank], self.logs[rank], self.told[rank]
        if where.node not in self.answers:
            self.answers[where.node] = self.launcher.address is None or node_answers(where.node)
        if not self.answers[where.node]:
            message = f"node {where.address} died, and with it process {where.process}"
            return lost(rank, "node_lost", message, readings, log)
        message = f"process {where.process} on {where.address} died: {_first_line(error)}"
        return lost(rank, "killed", message, readings, log)

    def _place(self, rank: int, port: int) -> Place:
        own = self.where[rank]
        devices = self._devices(rank)
        peers = [other for other, each in enumerate(self.where) if each.node == own.node]
        return Place(
            rank=rank,
            local_rank=devices.index(own.devices[0]) if own.devices else peers.index(rank),
            local_size=len(peers),
            master_address=self.where[0].address,
            master_port=port,
        )

    def _devices(self, rank: int) -> list[str]:
        """GPUs of all ranks of the node: each sees them all, so that they can reach each other."""
        node = self.where[rank].node
        found = (device for each in self.where if each.node == node for device in each.devices)
        return sorted(found, key=lambda device: (len(device), device))

    def _end(self, group: Any) -> None:
        """End every process, those that do not listen to Ray included."""
        import ray
        from ray.util.placement_group import remove_placement_group

        with suppress(Exception):
            for actor in self.actors:
                ray.kill(actor)
        with suppress(Exception):
            remove_placement_group(group)
        if self.launcher.address is None:
            for each in self.where:
                with suppress(ProcessLookupError):
                    os.kill(each.process, signal.SIGKILL)


def node_answers(node: str) -> bool:
    """Whether a node still runs what it is given: a cluster notices its end some time later."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    probe = ray.remote(num_cpus=0, max_retries=0)(_nothing).options(scheduling_strategy=there)
    try:
        ray.get(probe.remote(), timeout=NODE_SECONDS)
    except ray.exceptions.RayError:
        return False
    return True


def _nothing() -> None:
    """What a node is asked to do."""


def _first_line(error: Exception) -> str:
    """What Ray says, without its advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "Worker exit type" in line), lines[0] if lines else "")
    return told.split(" Some common causes", maxsplit=1)[0] or type(error).__name__
