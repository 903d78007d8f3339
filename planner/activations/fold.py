"""From single allocations to segments between marks."""

from collections.abc import Sequence
from itertools import islice

from planner.activations.tape import Mark, Segment
from planner.memory.terms import Term

TERMS = tuple(Term)
NUM_TERMS = len(TERMS)


def fold(
    events: Sequence[int | Mark],
    sizes: Sequence[int],
    terms: Sequence[Term | None],
    *,
    becomes_saved: int = 0,
) -> tuple[Segment, ...]:
    """Segments of one pass: ``+i`` allocates number ``i``, ``-i`` frees it; see `Machine`.

    ``becomes_saved``: bytes that were the layer before's passing result and are now kept.
    """
    segments: list[Segment] = []
    now = [0] * NUM_TERMS
    now[Term.TRANSIENT] -= becomes_saved
    now[Term.ACTIVATIONS] += becomes_saved
    top = now.copy()
    total = highest = 0
    moved = becomes_saved > 0
    for event in events:
        if isinstance(event, Mark):
            segments.append(Segment(_changes(top), _changes(now), event))
            now, top = [0] * NUM_TERMS, [0] * NUM_TERMS
            total = highest = 0
            moved = False
            continue
        moved = True
        term = terms[abs(event)]
        place = Term.TRANSIENT if term is None else term
        if event > 0:
            size = sizes[event]
            now[place] += size
            total += size
            if total > highest:
                highest = total
                top = now.copy()
        else:
            size = sizes[-event]
            now[place] -= size
            total -= size
    if moved:
        segments.append(Segment(_changes(top), _changes(now), None))
    return tuple(segments)


def handed_down(
    forward: Sequence[Segment],
    backward: Sequence[Segment],
    *,
    held_bytes: int,
    input_kept_bytes: int = 0,
) -> tuple[Segment, ...]:
    """The backward pass of a head, its input's gradient counted as the layer before expects it.

    A loss that computes gradients in its forward pass saves what it hands down: until then it is
    kept (`Term.ACTIVATIONS`), from then on it passes (`Term.TRANSIENT`). What the loop holds stays,
    and a tied weight's gradient waits for the stem's. ``input_kept_bytes``: of an input that the
    tape does not end, since somebody else holds it.
    """
    sums = [0] * NUM_TERMS
    for segment in (*forward, *backward):
        for term, size in segment.net:
            sums[term] += size
    sums[Term.LOGITS] -= held_bytes
    sums[Term.GRADIENTS] = 0
    sums[Term.TRANSIENT] -= input_kept_bytes
    *others, last = backward
    net = [0] * NUM_TERMS
    for term, size in last.net:
        net[term] = size
    changed = _changes([size - left for size, left in zip(net, sums, strict=True)])
    return (*others, last._replace(net=changed))


def _changes(column: list[int]) -> tuple[tuple[Term, int], ...]:
    """The terms that moved."""
    return tuple((term, size) for term, size in zip(TERMS, column, strict=True) if size)


def by_label(alive: Sequence[int], sizes: Sequence[int], labels: Sequence[str]) -> dict[str, int]:
    """Bytes of the allocations in ``alive`` by the part of the layer that made them."""
    result: dict[str, int] = {}
    for index in islice(alive, None):
        result[labels[index]] = result.get(labels[index], 0) + sizes[index]
    return result
