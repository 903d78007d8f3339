"""How Megatron-Core divides transformer layers over pipeline ranks.

Source: Megatron-LM, core/transformer/transformer_block.py (``get_num_layers_to_build``) and
core/transformer/pipeline_parallel_layer_layout.py.
"""

import re

from planner.accuracy.entries import Entry, whole

_REPEATED = re.compile(r"\(([^()]*)\)\*(\d+)|(\w)\*(\d+)")


def blocks_per_stage(entry: Entry, pp: int) -> tuple[int, ...]:
    """Blocks of each rank; empty where all ranks have as many."""
    parallel = entry.parallel
    layers = whole(entry.model, "num_layers")
    told = parallel.get("pipeline_model_parallel_layout")
    if pp == 1 or layers is None:
        return ()
    if isinstance(told, str):
        parts = segments(told)
        return tuple(sum(part.count("t") for part in parts[stage::pp]) for stage in range(pp))
    ends = [whole(parallel, f"decoder_{end}_pipeline_num_layers") for end in ("first", "last")]
    if any(ends):
        return _with_ends(layers, pp, ends[0], ends[1])
    extra = [
        int(parallel.get(f"account_for_{end}_in_pipeline_split") is True)
        for end in ("embedding", "loss")
    ]
    if any(extra):
        return _counted(layers, pp, extra[0], extra[1])
    return ()


def segments(told: str) -> list[str]:
    """A layout written out: ``Et*3|(tt|)*2mL`` is ``Ettt``, ``tt``, ``tt``, ``mL``."""
    while _REPEATED.search(told):
        told = _REPEATED.sub(lambda m: (m[1] or m[3]) * int(m[2] or m[4]), told)
    return told.split("|")


def _with_ends(layers: int, pp: int, first: int | None, last: int | None) -> tuple[int, ...]:
    """The ranks between share evenly what the ends leave."""
    inner = pp - (first is not None) - (last is not None)
    rest = layers - (first or 0) - (last or 0)
    each = rest // inner if inner else 0
    head = () if first is None else (first,)
    tail = () if last is None else (last,)
    return (*head, *([each] * inner), *tail)


def _counted(layers: int, pp: int, embedding: int, loss: int) -> tuple[int, ...]:
    """Embedding and loss count as a layer each."""
    each = (layers + embedding + loss) // pp
    return (each - embedding, *([each] * (pp - 2)), each - loss)
