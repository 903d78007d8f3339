"""What became of the ranks of a job, from what each of them told before the end."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import monotonic

from planner.validate.job import Failure, RankResult, Reading

CAUSES = ("node_lost", "killed", "out_of_memory", "error", "hung", "interrupted")
"""Why a job ends: the first of these that is there explains the others."""

GRACE_SECONDS = 15.0
"""After one rank failed, how long the others may still tell how they ended."""


class Patience:
    """How long a launcher waits for news: anew after each, but not after a rank has failed."""

    def __init__(self, silence_seconds: float) -> None:
        self._silence_seconds = silence_seconds
        self._failed = False
        self._deadline = monotonic() + silence_seconds

    def renew(self, ended: Mapping[int, RankResult]) -> None:
        """There was news; ``ended`` tells what became of the ranks so far."""
        if self._failed:
            return
        self._failed = any(result.outcome != "done" for result in ended.values())
        seconds = (
            min(GRACE_SECONDS, self._silence_seconds) if self._failed else self._silence_seconds
        )
        self._deadline = monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the end of patience."""
        return max(0.0, self._deadline - monotonic())

    @property
    def silence(self) -> float | None:
        """How long nobody spoke, if it was that which ended patience and no rank's failure."""
        return None if self._failed else self._silence_seconds


def settle(
    told: Mapping[int, Sequence[Reading]],
    ended: Mapping[int, RankResult],
    *,
    silence_seconds: float | None,
    logs: Mapping[int, str],
) -> tuple[RankResult, ...]:
    """All ranks' results, by rank.

    told: the readings of every rank; ended: the results in the order in which they came, lost
    ranks among them; silence_seconds: how long nobody had said anything, if that ended the job. The
    ranks that lag behind are the hung ones; the others waited for them, or for one that failed.
    """
    cause = _cause(ended)
    hung = _laggards(told, ended) if cause is None and silence_seconds is not None else ()
    reason = _reason(cause, hung, silence_seconds)
    results = []
    for rank, readings in sorted(told.items()):
        if rank in ended:
            results.append(_secondary(ended[rank], cause))
        else:
            kind = "hung" if rank in hung else "interrupted"
            results.append(lost(rank, kind, reason, readings, logs.get(rank)))
    return tuple(results)


def lost(
    rank: int, kind: str, message: str, readings: Sequence[Reading], log: str | None
) -> RankResult:
    """A rank whose process or node went away; it was beyond its last reading."""
    last = readings[-1] if readings else None
    failure = Failure(
        kind=kind,
        message=message,
        step=last.step if last else None,
        phase=last.phase if last else None,
        log=log,
    )
    return RankResult(rank=rank, outcome="lost", readings=tuple(readings), failure=failure)


def root_failure(results: Sequence[RankResult]) -> RankResult | None:
    """The rank whose failure ended the job; None if all came to their end."""
    return _cause({result.rank: result for result in results})


def _laggards(
    told: Mapping[int, Sequence[Reading]], ended: Mapping[int, RankResult]
) -> tuple[int, ...]:
    """Of the ranks that did not end, those with the fewest readings."""
    missing = [rank for rank in told if rank not in ended]
    fewest = min((len(told[rank]) for rank in missing), default=0)
    return tuple(rank for rank in missing if len(told[rank]) == fewest)


def _cause(ended: Mapping[int, RankResult]) -> RankResult | None:
    """The failure that explains the others: a lost process makes its peers fail as well."""
    failed = [result for result in ended.values() if result.outcome != "done"]
    return min(failed, key=_order, default=None)


def _order(result: RankResult) -> int:
    assert result.failure is not None
    name = result.failure.kind if result.outcome == "lost" else result.outcome
    return CAUSES.index(name)


def _reason(cause: RankResult | None, hung: Sequence[int], silence_seconds: float | None) -> str:
    if cause is not None and cause.failure is not None:
        return f"ended because rank {cause.rank} failed: {cause.failure.kind}"
    if silence_seconds is None:
        return "ended before its time"
    ranks = ", ".join(map(str, hung))
    return f"no news for {silence_seconds:.0f} s; rank {ranks} came least far"


def _secondary(result: RankResult, cause: RankResult | None) -> RankResult:
    """An error that came after another rank was gone is that rank's doing."""
    if result is cause or cause is None or result.outcome != "error" or result.failure is None:
        return result
    failure = result.failure
    told = f"after rank {cause.rank} failed: {failure.kind}: {failure.message}"
    return replace(
        result, outcome="lost", failure=replace(failure, kind="interrupted", message=told)
    )
