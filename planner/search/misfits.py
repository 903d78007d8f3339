"""Why layouts do not fit, by stage and by what is largest there, with what is lacking."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from planner.search.exact import Held
from planner.units import GIB


def count_misfits(held: Sequence[Held]) -> Mapping[str, int]:
    """Reasons as ``stage 3 over by 9.2 to 40.1 GiB: logits``, most frequent first."""
    over: dict[tuple[str, str], list[int]] = defaultdict(list)
    for each in held:
        if each.headroom_bytes < 0:
            cause = (f"stage {each.stage}", each.largest.label.replace("_", " "))
            over[cause].append(-each.headroom_bytes)
        else:
            over["host", "offloaded state"].append(each.host_over_bytes)
    counted = sorted(over.items(), key=lambda item: -len(item[1]))
    return {_reason(*cause, lacking): len(lacking) for cause, lacking in counted}


def _reason(where: str, term: str, lacking: Sequence[int]) -> str:
    low, high = (f"{size / GIB:.1f}" for size in (min(lacking), max(lacking)))
    amount = low if low == high else f"{low} to {high}"
    return f"{where} over by {amount} GiB: {term}"
